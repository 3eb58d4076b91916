"""Questions of language in conversations that hold a picture: what a branch for vision must not unlearn.

talks/beside_pictures.jsonl    a picture and a question about it, then a task of language

Knows conversations about pictures and conversations without. Knows nothing of pixels or tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from phirt.fields import Length, Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, write_lines
from phirt_train.preparation import PreparationTask

_Names = Annotated[tuple[str, ...], Length(1, 64)]


@dataclasses.dataclass(frozen=True)
class BesidePictures:
    """How many, and of what.

    Attributes:
        talks: how many are made.
        pictures: names of conversations about pictures, as `talks/<name>.jsonl`.
        chats: names of conversations of language, as `chats/<name>.jsonl`.
        characters: most of a conversation of language.
    """

    talks: Annotated[int, Range(1, 1_000_000)] = 2000
    pictures: _Names = ("caltech101.train", "clothing.train", "shapes.train")
    chats: _Names = ("calls", "following")
    characters: Annotated[int, Range(1, 1_000_000)] = 400

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`; both kinds of conversations are there."""
        shown = [_read(task, f"talks/{name}.jsonl") for name in self.pictures]
        asked = [self._short(_read(task, f"chats/{name}.jsonl")) for name in self.chats]
        rng = np.random.default_rng(task.seed)
        talks = (
            _joined(_any(shown, rng), _any([chats for chats in asked if chats], rng))
            for _ in range(self.talks)
        )
        write_lines(task.output / "talks/beside_pictures.jsonl", ({"messages": talk} for talk in talks))

    def _short(self, chats: Sequence[Conversation]) -> list[Conversation]:
        return [chat for chat in chats if sum(len(str(turn)) for turn in chat) <= self.characters]


def _read(task: PreparationTask, name: str) -> list[Any]:
    return [record["messages"] for record in read_records(task.output / name)]


def _any(files: Sequence[Sequence[Conversation]], rng: np.random.Generator) -> Conversation:
    chosen = files[int(rng.integers(len(files)))]
    return chosen[int(rng.integers(len(chosen)))]


def _joined(picture: Conversation, chat: Conversation) -> Conversation:
    """The picture's turns, then the chat's; instructions stand first."""
    instructions = [turn for turn in chat if turn["role"] == "system"]
    return [*instructions, *picture, *(turn for turn in chat if turn["role"] != "system")]
