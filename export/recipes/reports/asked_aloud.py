"""Questions about pictures that are spoken instead of written.

talks/asked_aloud.jsonl    a picture, its question as a recording, and the answer

A question is kept where a recogniser finds its words again: what nobody can hear teaches nothing. Knows
conversations about pictures, the voices and the embedded model's ears. Knows nothing of frames or tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

import phirt
from phirt.fields import Length, Range
from phirt_quant.word_errors import spoken_words, word_errors
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, user, write_lines
from phirt_train.preparation import PreparationTask

from ..nano.voices import is_installed, spoken

_NAME = "asked_aloud"


@dataclasses.dataclass(frozen=True)
class AskedAloud:
    """How many questions are spoken, of which sources, and which recordings are kept.

    Attributes:
        questions: recordings that are made.
        sources: names of conversations about pictures, as `talks/<name>.jsonl`.
        worst: most word errors for each word of a question.
    """

    questions: Annotated[int, Range(1, 1_000_000)] = 200
    sources: Annotated[tuple[str, ...], Length(1, 64)] = ("caltech101.train", "shapes.train", "charts.train")
    worst: Annotated[float, Range(0.0, 10.0)] = 0.3

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`; conversations about pictures are there."""
        if not is_installed():
            return
        kept = [{"messages": talk} for talk in self._kept(task, _drawn(task, self.sources, self.questions))]
        task.note(f"kept {len(kept)} of {self.questions} spoken questions", len(kept))
        if kept:
            write_lines(task.output / f"talks/{_NAME}.jsonl", kept)

    def _kept(self, task: PreparationTask, talks: Sequence[Conversation]) -> Iterator[Conversation]:
        folder = task.output / f"media/{_NAME}"
        folder.mkdir(parents=True, exist_ok=True)
        recogniser = phirt.load()
        for index, (talk, (said, wav)) in enumerate(
            zip(talks, spoken([talk[0]["content"] for talk in talks], task.seed), strict=True)
        ):
            path = folder / f"{index:05}.wav"
            path.write_bytes(wav)
            wanted = spoken_words(said)
            errors = word_errors(wanted, spoken_words(recogniser.transcribe(path)))
            if errors <= self.worst * len(wanted.split()):
                yield [user("", talk[0]["images"], [f"../media/{_NAME}/{path.name}"]), talk[1]]
            if index % 50 == 0:
                task.note("listening to spoken questions", index, len(talks))


def _drawn(task: PreparationTask, sources: Sequence[str], count: int) -> list[Conversation]:
    """Questions about one picture, without digits, which are written otherwise than heard; of every source
    as many.
    """
    found: list[Conversation] = []
    for number, source in enumerate(sources):
        talks = [
            record["messages"]
            for record in read_records(task.output / f"talks/{source}.jsonl")
            if _is_spoken_of(record["messages"])
        ]
        rng, own = np.random.default_rng((task.seed, number)), -(-count // len(sources))
        found += [talks[int(index)] for index in rng.permutation(len(talks))[:own]]
    return found[:count]


def _is_spoken_of(talk: Sequence[Mapping[str, Any]]) -> bool:
    return len(talk) == 2 and bool(talk[0].get("images")) and not any(c.isdigit() for c in talk[0]["content"])
