"""Training data as a user has it: JSON lines, one record a line, media named beside the file.

A file of conversations: {"messages": [{"role": "user", "content": "...", "images": ["a.jpg"]}, ...]}. Of
texts: {"text": "..."}. Of pictures to name: {"image": "a.jpg", "label": "pear"} or "labels" for several
questions. Of captions: {"image": "a.jpg", "text": "..."}. Of recordings with their words: {"audio": "b.wav",
"text": "..."}. Of preferences: {"prompt":
[{"role": "user", "content": "..."}], "chosen": "...", "rejected": "..."}. Other keys are ignored, and a name
ending in .xz is unpacked.

Knows lines and records. Knows nothing of tokens, pixels, or of what is learnt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import lzma
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, read_dataclass

T = TypeVar("T")
MAX_LINE_CHARACTERS = 1 << 24
_REMEDY = "correct the line"
_Media = Annotated[tuple[str, ...], Length(0, 64)]


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """One call in an assistant's answer."""

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrainingMessage:
    """One turn; media are paths relative to the file that names them, and stand before the text."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: _Media = ()
    audio: _Media = ()
    tool_calls: Annotated[tuple[ToolCall, ...], Length(0, 64)] = ()

    def __post_init__(self) -> None:
        if (self.images or self.audio) and self.role != "user":
            raise ValueError(f"a message of role {self.role} has media; accepted: of role user")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} calls tools; accepted: of role assistant")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns whose assistant's answers are learnt; `tools` are those that it is offered."""

    messages: Annotated[tuple[TrainingMessage, ...], Length(1, 4096)]
    tools: Annotated[tuple[Mapping[str, Any], ...], Length(0, 256)] = ()

    def __post_init__(self) -> None:
        if not any(message.role == "assistant" for message in self.messages):
            raise ValueError("no message has the role assistant, so there is no answer to learn")


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """Two answers to the same turns, which a file calls `prompt` and a user ends: one that is wanted rather
    than the other; `tools` are those that the turns are offered.
    """

    messages: Annotated[tuple[TrainingMessage, ...], Length(1, 4096)] = dataclasses.field(
        metadata={"key": "prompt"}
    )
    chosen: str
    rejected: str
    tools: Annotated[tuple[Mapping[str, Any], ...], Length(0, 256)] = ()

    def __post_init__(self) -> None:
        if self.messages[-1].role != "user":
            raise ValueError(f"'prompt' ends with a message of role {self.messages[-1].role}, expected: user")
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected' are equal, so nothing is preferred")

    def with_answer(self, answer: str) -> Conversation:
        """The turns and an answer to them."""
        return Conversation((*self.messages, TrainingMessage("assistant", answer)), self.tools)


@dataclasses.dataclass(frozen=True)
class Document:
    """Text that is learnt whole."""

    text: str


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """A picture and what it is called: `label`, or an answer to each of several questions."""

    image: str
    label: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.label is None) == (not self.labels):
            raise ValueError("give either 'label' or 'labels'")

    @property
    def classes(self) -> Mapping[str, str]:
        """The class by question; a single label answers the question "label"."""
        return self.labels if self.label is None else {"label": self.label}


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """A picture and what is written about it."""

    image: str
    text: str


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A recording and what is said in it."""

    audio: str
    text: str


def read_records(
    path: Path, cls: type[T], reject: Callable[[str], None] | None = None
) -> Iterator[tuple[str, T]]:
    """The records of a file, each with its place for messages.

    Args:
        reject: takes what is wrong with a line, which is then left out; None to refuse the file.

    Raises:
        ConfigError: the file cannot be read, or a line is no such record.
    """
    for place, line in _lines(path):
        try:
            fields = Fields(_parsed(line, place), place, ConfigError, _REMEDY)
            record: T = read_dataclass(typing.cast(Any, cls), fields)
        except ConfigError as error:
            if reject is None:
                raise
            reject(str(error))
        else:
            yield place, record


def read_lines(path: Path, reject: Callable[[str], None] | None = None) -> Iterator[tuple[str, Any]]:
    """The JSON values of a file's lines that are not empty, each with its place; `reject` as in
    `read_records`.

    Raises:
        ConfigError: the file cannot be read, or a line is no JSON.
    """
    for place, line in _lines(path):
        try:
            value = _parsed(line, place)
        except ConfigError as error:
            if reject is None:
                raise
            reject(str(error))
        else:
            yield place, value


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not empty; bytes that are no UTF-8 become lone surrogates."""
    if not path.is_file():
        raise ConfigError(f"the recipe names {path.name}, and {path.parent} holds no such file")
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path} line {number}", line
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a file of JSON lines in UTF-8") from error


def _parsed(line: str, place: str) -> Any:
    if len(line) > MAX_LINE_CHARACTERS:
        raise ConfigError(f"{place} is longer than {MAX_LINE_CHARACTERS} characters; split it")
    if not line.isascii():
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{place} cannot be read: it is no UTF-8; {_REMEDY}") from error
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no JSON: {error}; {_REMEDY}") from error


def media_named(path: Path) -> list[str]:
    """The pictures and recordings that the lines of a file name, each once, as they stand there; of lines
    that are no JSON none.
    """
    found: dict[str, None] = {}
    for _, line in _lines(path):
        if '"image' in line or '"audio' in line:  # most texts are not parsed
            with contextlib.suppress(ValueError, RecursionError):
                found |= dict.fromkeys(_media_of(json.loads(line)))
    return list(found)


def _media_of(value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    for key in ("image", "images", "audio"):
        names = value.get(key)
        yield from (name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str))
    for key in ("messages", "prompt"):
        if isinstance(value.get(key), list):
            for message in value[key]:
                yield from _media_of(message)


def texts_of(value: Any) -> Iterator[str]:
    """Every text of a record that a model could read or say: its own, its messages', its labels'."""
    if not isinstance(value, dict):
        return
    for key in ("text", "label", "content", "chosen", "rejected"):
        if isinstance(value.get(key), str):
            yield value[key]
    if isinstance(value.get("labels"), dict):
        yield from (label for label in value["labels"].values() if isinstance(label, str))
    for key in ("messages", "prompt"):
        if isinstance(value.get(key), list):
            for message in value[key]:
                yield from texts_of(message)
    if value.get("tool_calls"):
        yield json.dumps(value["tool_calls"], ensure_ascii=False)
