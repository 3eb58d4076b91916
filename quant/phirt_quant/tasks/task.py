"""What a task is: a file of records, what each of them asks, and the measures that are taken of the answers.

Knows questions, exercises, documents and recordings. Knows nothing of models, tokens or files' contents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
    """A context and the texts that may continue it, each with the space that it begins with. `gold` is the
    index of the right one; `preface` stands before everything, examples included.
    """

    context: str
    continuations: tuple[str, ...]
    gold: int = 0
    preface: str = ""

    @property
    def target(self) -> str:
        """The right continuation."""
        return self.continuations[self.gold]


@dataclasses.dataclass(frozen=True)
class Exercise:
    """A context after which the model writes until one of `stops`, and what tells whether that is right.
    `target` is a right answer, with the space that it begins with, for examples. `is_right_loosely` is a
    laxer reading of the answer, for the measure flexible_match; None is the same one.
    """

    context: str
    target: str
    is_right: Callable[[str], bool]
    stops: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 64
    is_right_loosely: Callable[[str], bool] | None = None
    preface: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text that is predicted from its first token to its last, each once, with as much before it as the
    model takes.
    """

    text: str


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording to be written down, and what is said in it. `file` is its name beside the records; `audio`
    the file's bytes, once it is read.
    """

    file: str
    target: str
    audio: bytes = dataclasses.field(default=b"", repr=False)


Item = Question | Exercise | Document | Recording


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        file: the JSON lines, below the data folder, without `.xz`.
        items: what a record asks, in order; nothing where it asks nothing.
        metrics: names in `phirt_quant.metrics`.
        shots: how many other items stand before each one as examples, unless somebody asks for others.
        examples: the file that the examples are from; the task's own where that is not there.
    """

    file: str
    items: Callable[[Record], Sequence[Item]]
    metrics: tuple[str, ...]
    shots: int = 0
    examples: str = ""


def multiple_choice(record: Record, *, begin: str = "") -> Question:
    """The question of a record with `query`, `choices` and `gold`, as ARC and PIQA are asked."""
    query = record["query"].rstrip("\n")
    choices = tuple(f" {choice}" for choice in record["choices"])
    return Question(f"{begin}{query}\nAnswer:", choices, record["gold"])
