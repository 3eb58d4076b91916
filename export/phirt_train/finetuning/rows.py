"""The rows that somebody fine-tunes with, as conversations, and the part of them that is held out.

A row is a conversation (see `phirt_train.data.records`), or {"prompt": "...", "answer": "..."} with, if it
likes, "system", "images" and "audio".

Knows rows and how they are split. Knows nothing of tokens or models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, read_dataclass, write_dataclass
from phirt_train.data.records import Conversation, TrainingMessage, read_lines

_REMEDY = "correct the line"
_LEAST_TO_SPLIT = 5  # rows; of fewer each counts
_MOST_HELD_OUT = 400
_Media = Annotated[tuple[str, ...], Length(0, 64)]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """One question and its answer; `image` is one picture."""

    prompt: str
    answer: str
    system: str | None = None
    images: _Media = ()
    image: str | None = None
    audio: str | _Media = ()

    def conversation(self) -> Conversation:
        """The same in turns."""
        images = (*self.images, *([] if self.image is None else [self.image]))
        audio = (self.audio,) if isinstance(self.audio, str) else self.audio
        system = [] if self.system is None else [TrainingMessage("system", self.system)]
        turns = [
            TrainingMessage("user", self.prompt, images, audio),
            TrainingMessage("assistant", self.answer),
        ]
        return Conversation((*system, *turns))


def read_rows(path: Path) -> list[Conversation]:
    """The conversations of a file, with absolute paths of media.

    Raises:
        ConfigError: the file cannot be read, or a line is neither a conversation nor a pair.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file; name a file of JSON lines")
    rows = [
        _absolute(_conversation(place, value), path.parent.absolute()) for place, value in read_lines(path)
    ]
    if not rows:
        raise ConfigError(f"{path} holds no rows; write a conversation a line")
    return rows


def _conversation(place: str, value: Any) -> Conversation:
    fields = Fields(value, place, ConfigError, _REMEDY)
    if "messages" in fields:
        return read_dataclass(Conversation, fields)
    if "prompt" not in fields or "answer" not in fields:
        raise fields.refusal('has neither "messages" nor "prompt" and "answer"')
    return read_dataclass(_Pair, fields).conversation()


def _absolute(row: Conversation, folder: Path) -> Conversation:
    """The conversation with its media named from anywhere."""
    messages = tuple(
        dataclasses.replace(
            message,
            images=tuple(str(folder / name) for name in message.images),
            audio=tuple(str(folder / name) for name in message.audio),
        )
        for message in row.messages
    )
    return dataclasses.replace(row, messages=messages)


def split(
    rows: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Rows to train on, and about `share` of them that are held out; those that ask the same stay together.
    Of less than five rows none is held out.
    """
    asked: dict[str, list[Conversation]] = {}
    for row in rows:
        asked.setdefault(_question(row), []).append(row)
    wanted = min(_MOST_HELD_OUT, max(1, round(share * len(rows)))) if share else 0
    if len(rows) < _LEAST_TO_SPLIT or len(asked) < _LEAST_TO_SPLIT:
        wanted = 0
    groups = [asked[question] for question in sorted(asked)]
    random.Random(seed).shuffle(groups)
    held_out: list[Conversation] = []
    while groups and len(held_out) < wanted:
        held_out += groups.pop()
    kept = {id(row) for row in held_out}
    return [row for row in rows if id(row) not in kept], held_out


def _question(row: Conversation) -> str:
    """What tells a question from others: all before the first answer."""
    turns = []
    for message in row.messages:
        if message.role == "assistant":
            break
        turns.append(repr(message))
    return hashlib.sha256("\n".join(turns).encode("utf-8", "surrogatepass")).hexdigest()


def write_rows(rows: Sequence[Conversation], path: Path) -> None:
    """The conversations as JSON lines."""
    lines = [json.dumps(write_dataclass(row), ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
