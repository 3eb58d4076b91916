"""A request to /v1/responses, read and checked.

Knows the fields of that protocol, and the items of its input. Earlier turns come as items: nothing is kept
here that an id could name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from phirt.encoders.encoder import ImageDetail
from phirt.fields import Fields, Length, Range

from .answers import Question
from .chat_request import (
    fields_of,
    function_of,
    read_body_as,
    require_consistent,
    response_schema,
    settings_of,
)
from .errors import BadRequestError
from .media import MediaPart, audio_part, image_part
from .tool_use import read_choice
from .turns import Call, Turn, read_arguments

_BIG = 1 << 62
_Anything = Any


@dataclass(frozen=True)
class ResponsesBody:
    """The fields of a request. The last group has no effect here: it is for accounts, stores and services."""

    input: str | Annotated[tuple[Any, ...], Length(1, 100_000)]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Range(1, _BIG)] | None = None
    temperature: Annotated[float, Range(0, 2)] | None = None
    top_p: Annotated[float, Range(1e-9, 1)] | None = None
    text: Mapping[str, Any] | None = None
    tools: tuple[Any, ...] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_logprobs: int | None = None
    include: tuple[str, ...] | None = None

    max_tool_calls: _Anything = None
    metadata: Mapping[str, str] | None = None
    prompt_cache_key: _Anything = None
    prompt_cache_retention: _Anything = None
    reasoning: _Anything = None
    safety_identifier: _Anything = None
    service_tier: _Anything = None
    store: _Anything = None
    stream_options: _Anything = None
    user: _Anything = None

    def __post_init__(self) -> None:
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(self, name) is not None:
                raise BadRequestError(
                    f"{name} names what is kept nowhere; send the earlier turns as items of input", param=name
                )
        if self.background:
            raise BadRequestError("background answers are kept nowhere; ask without", param="background")
        if self.truncation == "auto":
            raise BadRequestError(
                "truncation is auto, accepted: disabled; shorten the input", param="truncation"
            )
        if self.top_logprobs or any("logprobs" in one for one in self.include or ()):
            raise BadRequestError("probabilities are told by /v1/chat/completions", param="top_logprobs")


@dataclass(frozen=True)
class ResponsesRequest:
    """The request: its question, and what of it the answer repeats."""

    body: ResponsesBody
    question: Question


def read_responses(document: dict[str, Any], most_tokens: int) -> ResponsesRequest:
    """Reads a request. Raises BadRequestError."""
    body: ResponsesBody = read_body_as(ResponsesBody, document)
    text = fields_of(dict(body.text or {}), "text")
    text.require_known(("format", "verbosity"))
    form = text.raw("format")
    if form is not None and not isinstance(form, dict):
        raise BadRequestError("text.format is no object", param="text.format")
    functions = []
    for at, one in enumerate(body.tools or ()):
        tool = fields_of(one, f"tools[{at}]")
        if tool.raw("type") != "function":
            raise BadRequestError(
                f"tools[{at}] has the type {tool.shown('type')}, accepted: function", param="tools"
            )
        functions.append(function_of(tool, ("type",)))
    question = Question(
        turns=tuple(_turns(body)),
        tools=read_choice(body.tool_choice, functions, body.parallel_tool_calls is not False, ("name",)),
        settings=settings_of(body, body.max_output_tokens, most_tokens),
        schema=response_schema(form, nested=False),
    )
    require_consistent(question, None)
    return ResponsesRequest(body, question)


def _turns(body: ResponsesBody) -> list[Turn]:
    turns = [] if body.instructions is None else [Turn("system", body.instructions)]
    if isinstance(body.input, str):
        return [*turns, Turn("user", body.input)]
    for at, one in enumerate(body.input):
        turn = _turn(fields_of(one, f"input[{at}]"), f"input[{at}]")
        if turn is None:
            continue
        last = turns[-1] if turns else None
        if turn.calls and last is not None and last.role == "assistant":
            # Text and calls of one answer are items of their own here.
            turns[-1] = Turn("assistant", last.text, calls=(*last.calls, *turn.calls))
        else:
            turns.append(turn)
    return turns


def _turn(item: Fields, where: str) -> Turn | None:
    """The turn of one item; None for what a model has thought elsewhere."""
    kind = item.raw("type") if "type" in item else "message"
    if kind == "reasoning":
        return None
    if kind == "function_call":
        item.require_known(("type", "id", "call_id", "name", "arguments", "status", "namespace"))
        arguments = read_arguments(item.text("arguments"), f"{where}: arguments")
        return Turn("assistant", "", calls=(Call(item.text("call_id"), item.text("name"), arguments),))
    if kind == "function_call_output":
        item.require_known(("type", "id", "call_id", "output", "status"))
        text, media = _content(item.raw("output"), f"{where}: output")
        if media:
            raise BadRequestError(f"{where}: tools return text here, no media", param="input")
        return Turn("tool", text, call_id=item.text("call_id"))
    if kind != "message":
        raise BadRequestError(
            f"{where} has the type {item.shown('type')}, accepted: message, function_call, "
            "function_call_output",
            param="input",
        )
    item.require_known(("type", "id", "role", "content", "status", "phase"))
    role = item.read("role", Literal["system", "developer", "user", "assistant"])
    text, media = _content(item.raw("content"), where)
    if media and role != "user":
        raise BadRequestError(f"{where}: only messages of the user may have pictures or sound", param="input")
    return Turn("system" if role == "developer" else role, text, media)


def _content(value: Any, where: str) -> tuple[str, tuple[MediaPart, ...]]:
    if isinstance(value, str):
        return fields_of({"content": value}, where).text("content"), ()
    if not isinstance(value, list):
        raise BadRequestError(f"{where}: content is neither a string nor a list of parts", param="input")
    texts: list[str] = []
    media: list[MediaPart] = []
    for at, one in enumerate(value):
        part = fields_of(one, f"{where}: content[{at}]")
        kind = part.raw("type")
        if kind in ("input_text", "output_text", "text"):
            texts.append(part.text("text"))
        elif kind == "refusal":
            texts.append(part.text("refusal"))
        elif kind == "input_image":
            if not part.has("image_url"):
                raise BadRequestError(
                    f"{where}: content[{at}] has no image_url; files are kept nowhere", param="input"
                )
            detail: ImageDetail = part.read("detail", ImageDetail) if part.has("detail") else "auto"
            media.append(image_part(part.text("image_url"), detail, f"{where}.content[{at}]"))
        elif kind == "input_audio":
            media.append(audio_part(part.child("input_audio").text("data"), f"{where}.content[{at}]"))
        else:
            raise BadRequestError(
                f"{where}: content[{at}] has the type {part.shown('type')}, accepted: input_text, "
                "output_text, input_image, input_audio",
                param="input",
            )
    return "\n".join(texts), tuple(media)
