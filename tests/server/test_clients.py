"""OpenAI's own client gets what it asks for, whole and streamed: text, media, tools, schemas, vectors.

What nano says is what it says without a server.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import math
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest

import phirt
from phirt_apps.server.chat_request import read_chat
from phirt_apps.server.turns import to_messages

EXAMPLES = Path(__file__).resolve().parents[2] / "apps" / "examples"
PICTURE = "data:image/png;base64," + base64.b64encode((EXAMPLES / "shapes.png").read_bytes()).decode()
SOUND = base64.b64encode((EXAMPLES / "seven.flac").read_bytes()).decode()
WHO = [{"role": "user", "content": "Who are you?"}]
SHAPES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "How many shapes are there?"},
            {"type": "image_url", "image_url": {"url": PICTURE}},
        ],
    }
]
WEATHER = [
    {"role": "system", "content": "Turn the request into a tool call."},
    {"role": "user", "content": "Will it rain in Paris tomorrow?"},
]
GET_WEATHER = {"type": "function", "function": {"name": "GetWeather"}}
TYPED = {
    "type": "function",
    "function": {
        "name": "GetWeather",
        "description": "The weather of a day.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Oslo"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"shapes": {"enum": ["one", "two", "three"]}},
    "required": ["shapes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def alone(model: phirt.Model) -> str:
    return model.chat().send("Who are you?").text()


def _chat(client: openai.OpenAI, messages: Any = WHO, **arguments: Any) -> Any:
    return client.chat.completions.create(model="nano", messages=messages, **arguments)


def _chunks(client: openai.OpenAI, messages: Any = WHO, **arguments: Any) -> list[Any]:
    return list(_chat(client, messages, stream=True, **arguments))


def _text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["nano", "sums"]
    assert client.models.retrieve("sums").owned_by == "phirt"


def test_an_answer(client: openai.OpenAI, alone: str) -> None:
    answer = _chat(client)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, choice.message.tool_calls) == (alone, "stop", None)
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_streamed_answer(client: openai.OpenAI, alone: str) -> None:
    chunks = _chunks(client, stream_options={"include_usage": True})
    assert _text(chunks) == alone and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in _chunks(client))


def test_a_limit_and_a_seed(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        cut = _chat(client, **{name: 3})
        assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    sampled = [_chat(client, temperature=1.5, seed=seed).choices[0].message.content for seed in (7, 7, -8)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_stop_strings(client: openai.OpenAI, alone: str) -> None:
    for stop in (" very", [" very", "zzz"]):
        answer = _chat(client, stop=stop)
        assert answer.choices[0].message.content == alone.partition(" very")[0]
        assert answer.choices[0].finish_reason == "stop"
        assert _text(_chunks(client, stop=stop)) == alone.partition(" very")[0]


def test_a_picture_and_a_recording(client: openai.OpenAI) -> None:
    assert _chat(client, SHAPES).choices[0].message.content == "three"
    assert _text(_chunks(client, SHAPES)) == "three"
    heard = [
        {"type": "text", "text": "Transcribe the audio clip into text."},
        {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
    ]
    assert _chat(client, [{"role": "user", "content": heard}]).choices[0].message.content == "seven"


def _two_turns(model: phirt.Model) -> tuple[str, str]:
    """What is said to two questions, the first answer given back as text."""
    turns = [phirt.Message("user", "Who are you?")]
    first = model.generator.stream(turns, system="Be brief.").text()
    turns += [phirt.Message("assistant", first), phirt.Message("user", "And what can you do?")]
    return first, model.generator.stream(turns, system="Be brief.").text()


def test_a_conversation_goes_on(client: openai.OpenAI, model: phirt.Model) -> None:
    first, second = _two_turns(model)
    messages = [
        {"role": "developer", "content": "Be brief."},
        *WHO,
        {"role": "assistant", "content": first},
        {"role": "user", "content": [{"type": "text", "text": "And what can you do?"}]},
    ]
    assert _chat(client, messages).choices[0].message.content == second


def test_logprobs(client: openai.OpenAI, alone: str) -> None:
    answer = _chat(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = answer.logprobs.content
    assert b"".join(bytes(one.bytes) for one in tokens).decode() == alone
    for one in tokens:
        assert one.logprob <= 0 and len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token  # greedy takes the likeliest
        assert sum(math.exp(other.logprob) for other in one.top_logprobs) <= 1.0001
    streamed = [c.choices[0].logprobs for c in _chunks(client, logprobs=True, top_logprobs=3)]
    told = [one for part in streamed if part is not None for one in part.content]
    assert [one.token for one in told] == [one.token for one in tokens]
    assert _chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert _chat(client).choices[0].logprobs is None


def test_logprobs_of_sampled_tokens_are_those_of_the_model(client: openai.OpenAI) -> None:
    """A bias moves what is chosen, and not what the model thinks of it."""
    likely = _chat(client, logprobs=True, top_logprobs=2, max_tokens=1).choices[0].logprobs.content[0]
    second = likely.top_logprobs[1]
    banned = _chat(client, logprobs=True, max_tokens=1, logit_bias=_bias(client, likely.token))
    (chosen,) = banned.choices[0].logprobs.content
    assert (chosen.token, chosen.logprob) == (second.token, pytest.approx(second.logprob))


def _bias(client: openai.OpenAI, token: str) -> dict[str, int]:
    del client
    return {str(index): -100 for index in _IDS[token]}


_IDS: dict[str, list[int]] = {}


@pytest.fixture(autouse=True, scope="module")
def _ids(model: phirt.Model) -> None:
    tokenizer = model.generator.tokenizer
    for token in range(model.manifest.geometry.vocab_size):
        _IDS.setdefault(tokenizer.token_bytes(token).decode("utf-8", "replace"), []).append(token)


def test_penalties_forbid_repetition(client: openai.OpenAI) -> None:
    words = [{"role": "user", "content": "no no no no no no no no no no"}]
    schema = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 12, "maxItems": 12}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    def kinds(**settings: float) -> list[str]:
        return json.loads(_chat(client, words, response_format=form, **settings).choices[0].message.content)

    plain, varied = kinds(), kinds(frequency_penalty=2.0, presence_penalty=2.0)
    assert max(map(varied.count, "abc")) < max(map(plain.count, "abc")) or len(set(varied)) == 3


def test_a_tool_is_called_and_its_result_read(client: openai.OpenAI) -> None:
    for stream in (False, True):
        if stream:
            chunks = _chunks(client, WEATHER, tools=[GET_WEATHER])
            assert _text(chunks) == "" and chunks[-1].choices[0].finish_reason == "tool_calls"
            (call,) = [one for c in chunks for one in c.choices[0].delta.tool_calls or []]
        else:
            choice = _chat(client, WEATHER, tools=[GET_WEATHER]).choices[0]
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            (call,) = choice.message.tool_calls
        assert call.function.name == "GetWeather"
        assert json.loads(call.function.arguments) == {"city": "Paris", "timeRange": "tomorrow"}
    messages = [*WEATHER, choice.message, {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id}]
    messages[-1]["content"] = '{"celsius": 21}'
    assert "21" in _chat(client, messages, tools=[GET_WEATHER]).choices[0].message.content


def test_a_conversation_with_calls_is_the_one_that_a_chat_holds(model: phirt.Model) -> None:
    """The tokens of the call are those that the model has made, or the prompt would be another one."""
    chat = model.chat(system=WEATHER[0]["content"], tools=[{"name": "GetWeather"}])
    (call,) = chat.send(WEATHER[1]["content"]).result.tool_calls
    alone = chat.send_tool_results([{"celsius": 21}]).result
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments))}
    made = {"id": "call_1", "type": "function", "function": function}
    messages = [
        *WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 21}'},
    ]
    question = read_chat({"messages": messages, "tools": [GET_WEATHER]}, 10).question
    turns = to_messages(model.generator, question.turns, threading.Event())
    prompt = model.generator.encode_prompt(turns, tools=question.tools.offered)
    assert tuple(prompt.ids.tolist()) == alone.prompt_token_ids


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "GetWeather"}}])
def test_a_tool_that_must_be_called_is(client: openai.OpenAI, choice: Any) -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {"not": {}}}}
    answer = _chat(client, tools=[TYPED, other], tool_choice=choice, max_tokens=200).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.tool_calls
    for call in answer.message.tool_calls:
        if call.function.name == "GetWeather":
            jsonschema.validate(json.loads(call.function.arguments), TYPED["function"]["parameters"])
    if choice != "required":
        assert [call.function.name for call in answer.message.tool_calls] == ["GetWeather"]


def test_one_call_at_a_time_and_none(client: openai.OpenAI) -> None:
    answer = _chat(client, tools=[TYPED], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    assert len(answer.choices[0].message.tool_calls) == 1
    answer = _chat(client, WEATHER, tools=[GET_WEATHER], tool_choice="none", max_tokens=60)
    assert answer.choices[0].message.tool_calls is None


def test_a_strict_tool_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="which cannot be checked token by token"):
        _chat(client, tools=[tool], tool_choice="required")


def test_text_streams_where_tools_are_offered(client: openai.OpenAI) -> None:
    chunks = _chunks(client, tools=[GET_WEATHER])
    assert _text(chunks) == _chat(client, tools=[GET_WEATHER]).choices[0].message.content
    assert len(chunks) > 4


def test_schemas(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}
    answer = _chat(client, SHAPES, response_format=form)
    assert json.loads(answer.choices[0].message.content) == {"shapes": "three"}
    assert json.loads(_text(_chunks(client, SHAPES, response_format=form))) == {"shapes": "three"}
    answer = _chat(client, response_format={"type": "json_object"}, max_tokens=2000, temperature=1, seed=1)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert _chat(client, response_format={"type": "text"}).choices[0].finish_reason == "stop"
    cut = _chat(client, SHAPES, response_format=form, max_tokens=2).choices[0]
    assert cut.finish_reason == "length"


def test_a_schema_through_pydantic(client: openai.OpenAI) -> None:
    import pydantic

    class Count(pydantic.BaseModel):
        shapes: pydantic.StrictInt = pydantic.Field(ge=0, le=9)

    parsed = client.chat.completions.parse(model="nano", messages=SHAPES, response_format=Count)
    assert 0 <= parsed.choices[0].message.parsed.shapes <= 9


def test_responses(client: openai.OpenAI, alone: str) -> None:
    answer = client.responses.create(model="nano", input="Who are you?")
    assert (answer.output_text, answer.status) == (alone, "completed")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    cut = client.responses.create(model="nano", input="Who are you?", max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_responses_go_on_from_items(client: openai.OpenAI, model: phirt.Model) -> None:
    first, second = _two_turns(model)
    begun = client.responses.create(model="nano", instructions="Be brief.", input="Who are you?")
    assert begun.output_text == first
    items = [
        {"role": "user", "content": "Who are you?"},
        *begun.output,
        {"role": "user", "content": "And what can you do?"},
    ]
    again = client.responses.create(model="nano", instructions="Be brief.", input=items)
    assert again.output_text == second


def test_responses_stream_their_events_in_order(client: openai.OpenAI) -> None:
    content = [
        {"type": "input_text", "text": "How many shapes are there?"},
        {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
    ]
    with client.responses.stream(model="nano", input=[{"role": "user", "content": content}]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "three"
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "three"
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True])
def test_responses_call_tools(client: openai.OpenAI, stream: bool) -> None:
    tools = [{"type": "function", "name": "GetWeather", "parameters": None, "strict": False}]
    if stream:
        events = list(client.responses.create(model="nano", input=WEATHER, tools=tools, stream=True))
        assert [e.type for e in events].count("response.function_call_arguments.done") == 1
        (call,) = events[-1].response.output
    else:
        (call,) = client.responses.create(model="nano", input=WEATHER, tools=tools).output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] == "Paris"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"celsius": 21}'}
    answer = client.responses.create(model="nano", input=[*WEATHER, call, result], tools=tools)
    assert "21" in answer.output_text


def test_responses_with_a_schema(client: openai.OpenAI) -> None:
    form = {"format": {"type": "json_schema", "name": "count", "schema": SCHEMA}}
    answer = client.responses.create(model="nano", input="How many?", text=form)
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)


def test_transcriptions(client: openai.OpenAI) -> None:
    def transcribe(**arguments: Any) -> Any:
        with (EXAMPLES / "seven.flac").open("rb") as file:
            return client.audio.transcriptions.create(model="nano", file=file, **arguments)

    assert transcribe().text == "seven"
    assert transcribe(response_format="text") == "seven\n"
    assert transcribe(response_format="srt").startswith("1\n00:00:00,000 --> 00:00:01,")
    assert transcribe(response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.")
    verbose = transcribe(response_format="verbose_json", language="en", timestamp_granularities=["segment"])
    assert (verbose.text, verbose.segments[0].text, verbose.segments[0].start) == ("seven", "seven", 0.0)
    assert verbose.duration == pytest.approx(1.19, abs=0.01) and verbose.language == "en"
    events = list(transcribe(stream=True, temperature=0.0))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == "seven"


def test_embeddings(client: openai.OpenAI, embedder: phirt.Embedder) -> None:
    texts = ["sea boat", "wind", "old old old"]
    expected = embedder.embed(texts)
    for arguments in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        made = client.embeddings.create(model="sums", input=texts, **arguments)
        vectors = [_vector(one.embedding) for one in made.data]
        np.testing.assert_array_equal(vectors, expected)
    assert made.usage.prompt_tokens == sum(embedder.count_tokens(texts))
    (one,) = client.embeddings.create(model="sums", input="wind", dimensions=2).data
    np.testing.assert_array_equal(_vector(one.embedding), expected[1])


def _vector(embedding: Any) -> np.ndarray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return np.array(embedding, np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"n": 2}, openai.BadRequestError, "n is 2, accepted: 1"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "there is no model 'gpt-4o'"),
        ({"temperature": 3}, openai.BadRequestError, "'temperature' is 3, expected a number from 0 to 2"),
        ({"extra_body": {"colour": 1}}, openai.BadRequestError, "'colour' is not known here"),
        ({"messages": WHO * 2100}, openai.BadRequestError, "cannot fit into the model's context"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, openai.BadRequestError, "tokens"),
        ({"modalities": ["text", "audio"]}, openai.BadRequestError, "modalities"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, "the last one is"),
        ({"stop": [""]}, openai.BadRequestError, "stop is"),
    ],
)
def test_refusals_are_the_clients_own_errors(
    client: openai.OpenAI, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        client.chat.completions.create(**{"model": "nano", "messages": WHO, **arguments})


def test_eight_clients_at_once_get_what_one_gets(start: Any, alone: str) -> None:
    server = start(parallel=2, queue=8)

    def work(number: int) -> list[str]:
        client = server.client
        kinds = [
            lambda: _chat(client).choices[0].message.content,
            lambda: _text(_chunks(client)),
            lambda: _chat(client, SHAPES).choices[0].message.content,
            lambda: client.responses.create(model="nano", input="Who are you?").output_text,
        ]
        return [kinds[(number + at) % 4]() for at in range(4)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(8)))
    assert all(sorted(some) == sorted([alone, alone, "three", alone]) for some in answers)
    server.wait_until_free()
    server.wait(lambda: server.figure("phirt_requests_total") == 32)
