"""A request to /v1/chat/completions, read and checked.

Knows the fields of that protocol. Knows nothing of models: what only one can judge (tokens, context, media)
it judges later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from phirt.encoders.encoder import ImageDetail
from phirt.errors import PhirtError
from phirt.fields import Fields, Length, Range, read_dataclass
from phirt.generate.grammar import Grammar

from .answers import Question
from .errors import BadRequestError
from .media import MediaPart, audio_part, image_part
from .tool_use import Function, read_choice
from .turns import Call, Turn, read_arguments

_REMEDY = "see the documentation of phirt serve"
_BIG = 1 << 62
_Penalty = Annotated[float, Range(-2, 2)]
_Share = Annotated[float, Range(0, 1)]
_Anything = Any


@dataclass(frozen=True)
class ChatBody:
    """The fields of a request. The last group has no effect here: it is for accounts, stores and services."""

    messages: Annotated[tuple[Any, ...], Length(1, 100_000)]
    model: str | None = None
    stream: bool | None = None
    stream_options: Mapping[str, Any] | None = None
    max_tokens: Annotated[int, Range(1, _BIG)] | None = None
    max_completion_tokens: Annotated[int, Range(1, _BIG)] | None = None
    temperature: Annotated[float, Range(0, 2)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Range(0, _BIG)] | None = None
    min_p: _Share | None = None
    repetition_penalty: Annotated[float, Range(0.01, 100)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Mapping[str, Annotated[float, Range(-100, 100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Range(0, 20)] | None = None
    seed: Annotated[int, Range(-_BIG, _BIG)] | None = None
    stop: str | tuple[str, ...] | None = None
    n: int | None = None
    response_format: Mapping[str, Any] | None = None
    tools: tuple[Any, ...] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: tuple[str, ...] | None = None

    metadata: _Anything = None
    prediction: _Anything = None
    prompt_cache_key: _Anything = None
    prompt_cache_retention: _Anything = None
    reasoning_effort: _Anything = None
    safety_identifier: _Anything = None
    service_tier: _Anything = None
    store: _Anything = None
    user: _Anything = None
    verbosity: _Anything = None

    def __post_init__(self) -> None:
        if self.n not in (None, 1):
            raise BadRequestError(f"n is {self.n}, accepted: 1; ask several times", param="n")
        if self.modalities not in (None, ("text",)):
            raise BadRequestError("modalities other than text are not made here", param="modalities")
        if self.top_logprobs and not self.logprobs:
            raise BadRequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.top_p == 0:
            raise BadRequestError("top_p is 0, accepted: a number above 0 up to 1", param="top_p")


@dataclass(frozen=True)
class ChatRequest:
    """The request: whom it asks, what, and how the answer is sent."""

    model: str | None
    question: Question
    stream: bool
    include_usage: bool
    with_chances: bool


def read_chat(document: dict[str, Any], most_tokens: int) -> ChatRequest:
    """Reads a request. Raises BadRequestError."""
    body: ChatBody = read_body_as(ChatBody, document)
    options = fields_of(dict(body.stream_options or {}), "stream_options")
    options.require_known(("include_usage", "include_obfuscation"))
    usage = options.read("include_usage", bool) if "include_usage" in options else False
    functions = [_function(one, f"tools[{at}]") for at, one in enumerate(body.tools or ())]
    tools = read_choice(
        body.tool_choice, functions, body.parallel_tool_calls is not False, ("function", "name")
    )
    schema = response_schema(body.response_format, nested=True)
    question = Question(
        turns=tuple(_turn(one, f"messages[{at}]") for at, one in enumerate(body.messages)),
        tools=tools,
        settings=settings_of(body, body.max_completion_tokens or body.max_tokens, most_tokens),
        schema=schema,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        biases=_biases(body.logit_bias or {}),
        top_chances=(body.top_logprobs or 0) if body.logprobs else None,
    )
    require_consistent(question, body.stop)
    return ChatRequest(body.model, question, bool(body.stream), bool(usage), bool(body.logprobs))


def read_body_as(cls: type[Any], document: dict[str, Any]) -> Any:
    """The document as one of the dataclasses of requests. Raises BadRequestError."""
    try:
        return read_dataclass(cls, fields_of(document, "the request"))
    except BadRequestError as error:  # of `__post_init__`, wrapped with its place
        raise error.__cause__ if isinstance(error.__cause__, BadRequestError) else error from None


def fields_of(value: Any, where: str) -> Fields:
    """An object inside of a request, closed: what is not known is refused."""
    return Fields(value, where, BadRequestError, _REMEDY, closed=True)


def settings_of(body: Any, max_tokens: int | None, most_tokens: int) -> dict[str, Any]:
    """The settings that a request gives, by the runtime's names."""
    given = {
        name: getattr(body, name, None)
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    }
    settings = {name: value for name, value in given.items() if value is not None}
    settings["max_new_tokens"] = min(max_tokens or most_tokens, most_tokens)
    if getattr(body, "seed", None) is not None:
        settings["seed"] = body.seed % (1 << 63)
    stop = getattr(body, "stop", None)
    if stop:
        settings["stop"] = (stop,) if isinstance(stop, str) else stop
    return settings


def require_consistent(question: Question, stop: Any) -> None:
    """Refuses what cannot all be done with one answer."""
    if question.schema is not None and stop:
        raise BadRequestError(
            "stop would cut an answer that has a response_format; leave one out", param="stop"
        )
    if question.tools.forced and stop:
        raise BadRequestError("stop would cut a call that tool_choice asks for; leave one out", param="stop")
    if question.tools.forced and question.schema is not None:
        raise BadRequestError(
            "response_format and a forced tool_choice contradict each other", param="tool_choice"
        )


def response_schema(value: Mapping[str, Any] | None, *, nested: bool) -> Grammar | None:
    """The form that `response_format` (nested), or `text.format` of responses, asks for."""
    if value is None:
        return None
    where = "response_format" if nested else "text.format"
    kind = value.get("type")
    if kind == "text":
        return None
    try:
        if kind == "json_object":
            return Grammar.json_schema({"type": "object"})
        inner = value.get("json_schema") if nested else value
        if (
            kind == "json_schema"
            and isinstance(inner, Mapping)
            and isinstance(inner.get("schema"), Mapping | bool)
        ):
            return Grammar.json_schema(inner["schema"])
    except PhirtError as error:
        raise BadRequestError(str(error), param=where, code="invalid_schema") from error
    at = "json_schema.schema" if nested else "schema"
    raise BadRequestError(
        f'{where} has the type {kind!r:.40}, accepted: "text", "json_object", or "json_schema" with {at}',
        param=where,
    )


def _function(value: Any, where: str) -> Function:
    tool = fields_of(value, where)
    if tool.raw("type") != "function":
        raise BadRequestError(f"{where}: the type is {tool.shown('type')}, accepted: function", param="tools")
    tool.require_known(("type", "function"))
    return function_of(fields_of(tool.raw("function"), f"{where}: function"))


def function_of(fields: Fields, known: Sequence[str] = ()) -> Function:
    """A function that is offered, by its fields."""
    fields.require_known(("name", "description", "parameters", "strict", *known))
    parameters = fields.raw("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise fields.refusal("parameters are no JSON schema, accepted: an object")
    return Function(
        fields.text("name"),
        fields.optional_text("description"),
        parameters,
        bool(fields.read("strict", bool | None)) if "strict" in fields else False,
    )


def _biases(values: Mapping[str, float]) -> dict[int, float]:
    if not all(key.isdecimal() and len(key) < 9 for key in values):
        raise BadRequestError("logit_bias names a token that is no number", param="logit_bias")
    return {int(key): value for key, value in values.items()}


def _turn(value: Any, where: str) -> Turn:
    message = fields_of(value, where)
    role = message.raw("role")
    if role in ("system", "developer"):
        message.require_known(("role", "content", "name"))
        return Turn("system", _text(message, where))
    if role == "user":
        message.require_known(("role", "content", "name"))
        text, media = _content(message.raw("content"), where)
        return Turn("user", text, media)
    if role == "tool":
        message.require_known(("role", "content", "tool_call_id", "name"))
        return Turn("tool", _text(message, where), call_id=message.text("tool_call_id"))
    if role == "assistant":
        message.require_known(("role", "content", "name", "tool_calls", "refusal", "audio", "annotations"))
        if message.has("audio"):
            raise BadRequestError(f"{where} has audio of another server", param="messages")
        calls = [
            _call(one, f"{where}: tool_calls[{at}]") for at, one in enumerate(message.raw("tool_calls") or ())
        ]
        said = _text(message, where) if message.has("content") or not calls else ""
        return Turn("assistant", said, calls=tuple(calls))
    raise BadRequestError(
        f"{where} has the role {message.shown('role')}, accepted: system, developer, user, assistant, tool",
        param="messages",
    )


def _call(value: Any, where: str) -> Call:
    call = fields_of(value, where)
    call.require_known(("id", "type", "function", "index"))
    function = fields_of(call.raw("function"), f"{where}: function")
    arguments = read_arguments(function.text("arguments"), f"{where}: arguments")
    return Call(call.text("id"), function.text("name"), arguments)


def _text(message: Fields, where: str) -> str:
    text, media = _content(message.raw("content"), where)
    if media:
        raise BadRequestError(
            f"{where}: only messages of the user may have pictures or sound", param="messages"
        )
    return text


def _content(value: Any, where: str) -> tuple[str, tuple[MediaPart, ...]]:
    """The text of a message, its parts joined by new lines, and its media."""
    if isinstance(value, str):
        return fields_of({"content": value}, where).text("content"), ()
    if not isinstance(value, list):
        raise BadRequestError(f"{where}: content is neither a string nor a list of parts", param="messages")
    texts: list[str] = []
    media: list[MediaPart] = []
    for at, one in enumerate(value):
        part = fields_of(one, f"{where}: content[{at}]")
        kind = part.raw("type")
        if kind in ("text", "refusal"):
            texts.append(part.text(kind))
        elif kind == "image_url":
            image = part.child("image_url")
            detail: ImageDetail = image.read("detail", ImageDetail) if image.has("detail") else "auto"
            media.append(image_part(image.text("url"), detail, f"{where}.content[{at}]"))
        elif kind == "input_audio":
            media.append(audio_part(part.child("input_audio").text("data"), f"{where}.content[{at}]"))
        else:
            raise BadRequestError(
                f"{where}: content[{at}] has the type {part.shown('type')}, accepted: text, image_url, "
                "input_audio",
                param="messages",
            )
    return "\n".join(texts), tuple(media)
