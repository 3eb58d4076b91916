"""A small trained model on real media: every kind of request, and a conversation that mixes them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import phirt
from phirt.generate.sequence import Adapter
from phirt.prompt.messages import Message
from phirt.transcription import TRANSCRIBE_PROMPT

SHORT = phirt.GenerationConfig(max_new_tokens=24)
EXAMPLES = Path(__file__).resolve().parents[2] / "apps" / "examples"


@pytest.fixture(scope="module")
def model(nano: Path) -> phirt.Model:
    return phirt.load(nano, verify=True)


@pytest.fixture(scope="module")
def samples(shared_data: Path) -> Path:
    return shared_data / "samples"


def ask(model: phirt.Model, text: str, **media: list[Path]) -> phirt.Result:
    return model.chat().send(text, config=SHORT, **media).result


def test_text(model: phirt.Model) -> None:
    result = ask(model, "Who are you?")
    assert "nano" in result.text
    assert (result.adapter, result.finish_reason) == ("none", "stop")


def test_text_to_a_tool_call(model: phirt.Model) -> None:
    chat = model.chat(system="Turn the request into a tool call.")
    config = phirt.GenerationConfig(max_new_tokens=80)
    (call,) = chat.send("Book a table for four at a pub in Chicago", config=config).result.tool_calls
    assert call.name == "BookRestaurant"
    assert call.arguments["party_size_number"] == "four"


def test_the_example_picture(model: phirt.Model) -> None:
    result = ask(model, "How many shapes are there?", images=[EXAMPLES / "shapes.png"])
    assert (result.text, result.adapter) == ("three", "vision")


def test_one_photo(model: phirt.Model, samples: Path) -> None:
    result = ask(model, "What piece of clothing is this?", images=[samples / "tshirt.jpg"])
    assert result.text == "t-shirt"
    assert result.adapter == "vision"
    assert result.usage.image_tokens == len(
        [i for i in result.prompt_token_ids if i == model.manifest.encoders["vision"].placeholder]
    )


def test_two_photos_in_one_turn(model: phirt.Model, samples: Path) -> None:
    photos = [samples / "tshirt.jpg", samples / "apples.jpg"]
    second = ask(model, "What is in the second picture?", images=photos)
    assert ask(model, "What is in the first picture?", images=photos).text == "t-shirt"
    assert "apple" in second.text.lower()
    alone = ask(model, "What is this?", images=photos[:1])
    assert second.usage.image_tokens > alone.usage.image_tokens


def test_a_second_photo_in_a_later_turn_is_seen(model: phirt.Model, samples: Path) -> None:
    chat = model.chat()
    first = chat.send("What is this?", images=[samples / "tshirt.jpg"], config=SHORT).result
    second = chat.send("What is this?", images=[samples / "apples.jpg"], config=SHORT).result
    assert first.text == "t-shirt" and "apple" in second.text.lower()
    assert second.usage.cached_tokens >= len(first.prompt_token_ids)
    assert second.usage.image_tokens > first.usage.image_tokens
    # Another second photo in its place changes what comes next.
    history = chat.messages[:2]
    logits = []
    for photo in ("apples.jpg", "gull.jpg"):
        turn = Message("user", "What is this?", model.generator.prepare_media([samples / photo], []))
        logits.append(
            model.generator.new_engine()
            .prefill_prompt(model.generator.encode_prompt((*history, turn), None, None))
            .copy()
        )
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_a_recording(model: phirt.Model, samples: Path) -> None:
    result = ask(model, TRANSCRIBE_PROMPT, audio=[samples / "seven.flac"])
    assert result.text == "seven"
    assert ask(model, TRANSCRIBE_PROMPT, audio=[EXAMPLES / "seven.flac"]).text == "seven"
    assert result.adapter == "speech"
    assert (
        result.usage.audio_tokens
        == result.prompt_token_ids.count(model.manifest.encoders["speech"].placeholder)
        > 0
    )


def test_a_long_recording_is_heard_to_its_end(model: phirt.Model, samples: Path) -> None:
    result = ask(model, TRANSCRIBE_PROMPT, audio=[samples / "jfk.flac"])
    assert result.usage.audio_tokens == 138  # 11 s: 1,098 frames, eight a token
    assert result.text.strip()


def test_a_photo_and_a_recording(model: phirt.Model, samples: Path) -> None:
    result = ask(model, "What is said?", images=[samples / "apples.jpg"], audio=[samples / "seven.flac"])
    assert result.adapter == "vision"
    assert result.usage.image_tokens > 0 and result.usage.audio_tokens > 0
    assert result.text == "seven"


def test_a_conversation_of_text_photo_recording_and_text(model: phirt.Model, samples: Path) -> None:
    chat = model.chat()
    routes, cached, texts = [], [], []
    for text, media in (
        ("Hello", {}),
        ("What is this?", {"images": [samples / "tshirt.jpg"]}),
        ("And what is said here?", {"audio": [samples / "seven.flac"]}),
        ("Thanks", {}),
    ):
        result = chat.send(text, config=SHORT, **media).result
        assert result.finish_reason in ("stop", "length")
        texts.append(result.text)
        routes.append(result.adapter)
        cached.append(result.usage.cached_tokens)
    assert routes == ["none", "vision", "vision", "vision"]
    assert texts == ["Hello! How can I help you?", "t-shirt", "seven", "You are welcome."]
    # The change of route runs the history again; after it, only new tokens are run.
    assert cached[1] == 0 and 0 < cached[2] < cached[3]
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 4


def test_the_routes_differ_at_every_decode_step(model: phirt.Model) -> None:
    ids = model.generator.tokenizer.encode_content("The river runs through the old town and into the sea.")
    steps: dict[str, list[np.ndarray]] = {}
    for route in ("none", "vision", "speech"):
        engine = model.generator.new_engine()
        steps[route] = [engine.prefill(ids[:4], adapter=Adapter(route)).copy()]
        steps[route] += [engine.decode_step(token).copy() for token in ids[4:]]
    for one, other in (("none", "vision"), ("none", "speech"), ("vision", "speech")):
        for a, b in zip(steps[one], steps[other], strict=True):
            assert np.abs(a - b).max() > 1e-2


def test_greedy_answers_repeat_and_seeded_ones_follow_their_seed(model: phirt.Model) -> None:
    assert ask(model, "Hello").token_ids == ask(model, "Hello").token_ids
    warm = [phirt.GenerationConfig(max_new_tokens=24, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (
        model.chat().send("Tell me a story.", config=config).result.token_ids for config in warm
    )
    assert first == again != other


def test_a_saved_conversation_goes_on_without_running_again(
    model: phirt.Model, nano: Path, samples: Path, tmp_path: Path
) -> None:
    chat = model.chat()
    chat.send("What is this?", images=[samples / "apples.jpg"], config=SHORT).result  # noqa: B018
    chat.save(tmp_path / "talk.phirt")
    expected = chat.send("Thanks", config=SHORT).result
    resumed = phirt.load(nano).load_chat(tmp_path / "talk.phirt").send("Thanks", config=SHORT).result
    assert resumed.token_ids == expected.token_ids
    assert resumed.usage.cached_tokens == expected.usage.cached_tokens > 0


def test_a_minute_of_digits_says_what_each_digit_says(model: phirt.Model, shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "speech" / "fsdd.val.jsonl").open(encoding="utf-8")]
    rng = np.random.default_rng(0)
    with tarfile.open(shared_data / "speech" / "fsdd.val.tar") as tar:
        clips = []
        for index in rng.permutation(len(rows))[:45]:
            content = tar.extractfile(rows[index]["file"])
            assert content is not None
            clips.append(soundfile.read(io.BytesIO(content.read()), dtype="float32")[0])
    parts = [part for clip in clips for part in (clip, np.zeros(int(rng.uniform(3000, 12000)), np.float32))]
    segments = list(model.transcribe_segments((np.concatenate(parts), 8000)))
    assert [segment.text for segment in segments] == [model.transcribe((clip, 8000)) for clip in clips]
