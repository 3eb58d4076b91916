"""A conversation as both protocols have it, and as phirt's messages.

Knows roles, calls and their results. Knows nothing of the protocols' own words.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from phirt.prompt.messages import Media, Message
from phirt.prompt.tools import results_to_json

from .errors import BadRequestError
from .media import MediaPart

if TYPE_CHECKING:
    from phirt.generator import Generator

_MAX_TOKEN_BYTES = 64  # no text shorter than that many bytes a token can fill a context


@dataclass(frozen=True)
class Call:
    """A call that the model has made."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One message. `calls` belong to an assistant's, `call_id` to what a tool returned."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    media: tuple[MediaPart, ...] = ()
    calls: tuple[Call, ...] = ()
    call_id: str = ""


def read_arguments(text: str, where: str) -> dict[str, Any]:
    """The arguments of a call. Raises BadRequestError for what is no JSON object."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"{where} is not JSON: {error}", param=where) from error
    if not isinstance(value, dict):
        raise BadRequestError(f"{where} is no JSON object", param=where)
    return value


def require_within(turns: Sequence[Turn], context: int) -> None:
    """Refuses what cannot fit into the context before any work is done with it."""
    size = sum(len(turn.text) for turn in turns)
    if len(turns) > context or size > context * _MAX_TOKEN_BYTES:
        raise BadRequestError(
            f"{len(turns)} messages of {size} characters cannot fit into the model's context of {context} "
            "tokens; shorten the conversation",
            code="context_length_exceeded",
            param="messages",
        )


def to_messages(generator: Generator, turns: Sequence[Turn], cancel: threading.Event) -> list[Message]:
    """The messages of a conversation, its media read. Raises BadRequestError for results without calls."""
    messages: list[Message] = []
    waiting: list[Call] = []  # calls whose results come next
    results: dict[str, Any] = {}

    def flush() -> None:
        if not results:
            return
        if missing := [call.id for call in waiting if call.id not in results]:
            raise BadRequestError(
                f"the call {missing[0]!r:.80} has no result, though others have", param="messages"
            )
        content = results_to_json([results[call.id] for call in waiting], len(waiting))
        messages.append(Message(generator.tool_role, content))
        waiting.clear()
        results.clear()

    for turn in turns:
        if turn.role == "tool":
            if turn.call_id not in {call.id for call in waiting} or turn.call_id in results:
                raise BadRequestError(
                    f"the result for {turn.call_id!r:.80} answers no call of the message before it",
                    param="messages",
                )
            results[turn.call_id] = _result(turn.text)
            continue
        flush()
        waiting = list(turn.calls)
        messages.append(_message(generator, turn, cancel))
    flush()
    return messages


def _message(generator: Generator, turn: Turn, cancel: threading.Event) -> Message:
    if turn.calls:
        calls = [(call.name, dict(call.arguments)) for call in turn.calls]
        ids = generator.call_format.ids(generator.tokenizer, turn.text, calls)
        return Message("assistant", "", token_ids=ids)
    assert turn.role != "tool"
    return Message(turn.role, turn.text, tuple(_prepared(generator, turn.media, cancel)))


def _prepared(generator: Generator, parts: Sequence[MediaPart], cancel: threading.Event) -> Iterator[Media]:
    """The media of one message, pictures first, as the models were trained."""
    for part in sorted(parts, key=lambda part: part.modality == "audio"):
        images = [part.data] if part.modality == "image" else []
        audio = [part.data] if part.modality == "audio" else []
        yield from generator.prepare_media(images, audio, part.detail, cancel)


def _result(text: str) -> Any:
    """What a tool returned: the JSON that it is, or text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
