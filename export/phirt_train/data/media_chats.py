"""Conversations about pictures and recordings to learn from: which media, which questions, in which turns.

Knows picture sets, clips and tasks. Knows nothing of pixels, frames, tokens or models. A batch is a pure
function of a random generator; its samples are alike in their turns, because a batch is padded to its longest
row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from phirt_train.data.chats import COURTESIES
from phirt_train.data.pictures import RENDERED, PictureSet
from phirt_train.data.speech import Clips
from phirt_train.data.tasks import Task, about_scene, hear, name_it, spoken_answers
from phirt_train.options import MediaAnswerData

SPOKEN_QUESTIONS = "spoken_questions"

PictureRef = tuple[str, int]  # source and index
ClipRef = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a user shows, plays and asks, and the answer to learn. Media stand before the text."""

    task: Task
    pictures: tuple[PictureRef, ...] = ()
    clip: ClipRef | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One conversation to learn; the first turn's task holds the system text."""

    turns: tuple[Turn, ...]


class MediaChats:
    """Draws batches of conversations in the shares that a stage asks for.

    Args:
        data: shares of sources and of kinds of conversations.
        pictures, clips: the training sets of the sources in use.
        batch: samples in a batch.
    """

    def __init__(
        self,
        data: MediaAnswerData,
        pictures: Mapping[str, PictureSet],
        clips: Mapping[str, Clips],
        batch: int,
    ) -> None:
        self.data, self.pictures, self.clips, self.size = data, pictures, clips, batch

    def batch(self, rng: np.random.Generator) -> list[Sample]:
        """The samples of one batch."""
        if not self.pictures:
            return [Sample((turn,)) for turn in self._clips_alike(rng)]
        if self.clips and rng.random() >= self.data.pictures_alone:
            return [Sample((turn,)) for turn in self._pictures_with_clips(rng)]
        if rng.random() < self.data.two_pictures:
            return [Sample((self._two_pictures(rng),)) for _ in range(self.size)]
        turns = [self._picture(rng) for _ in range(self.size)]
        kinds, shares = list(self.data.follow_ups), np.array(list(self.data.follow_ups.values()))
        kind = rng.choice([*kinds, ""], p=[*shares, 1 - shares.sum()])
        if not kind:
            return [Sample((turn,)) for turn in turns]
        if kind == "picture":
            return [Sample((turn, self._next_picture(rng))) for turn in turns]
        talks: list[tuple[Turn, ...]] = [(turn,) for turn in turns]
        if kind == "clip" or (self.clips and rng.random() < 0.6):
            talks = [(*talk, clip) for talk, clip in zip(talks, self._clips_alike(rng), strict=True)]
        if kind == "text":
            talks = [(*talk, self._courtesy(rng)) for talk in talks]
        return [Sample(talk) for talk in talks]

    def ask(self, source: str, pictures: PictureSet, index: int, rng: np.random.Generator) -> Task:
        """A question about one picture."""
        if source in RENDERED:
            return about_scene(pictures.scenes[index], rng)
        return name_it(source, pictures.labels[index], rng)

    def _draw(self, shares: Mapping[str, float], rng: np.random.Generator) -> str:
        weights = np.array(list(shares.values()))
        return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]

    def _picture(self, rng: np.random.Generator, without: tuple[str, ...] = ()) -> Turn:
        source = self._draw({n: s for n, s in self.data.pictures.items() if n not in without}, rng)
        index = int(rng.integers(len(self.pictures[source])))
        return Turn(self.ask(source, self.pictures[source], index, rng), ((source, index),))

    def _next_picture(self, rng: np.random.Generator) -> Turn:
        turn = self._picture(rng, without=RENDERED)
        if rng.random() < 0.3:
            return dataclasses.replace(turn, task=Task("And this?", turn.task.answer))
        return turn

    def _two_pictures(self, rng: np.random.Generator) -> Turn:
        pair = [self._picture(rng, without=RENDERED), self._picture(rng)]
        first = bool(rng.random() < 0.5)
        shown = pair if first else pair[::-1]
        asked = f"What is in the {'first' if first else 'second'} picture?"
        return Turn(Task(asked, pair[0].task.answer), tuple(turn.pictures[0] for turn in shown))

    def _courtesy(self, rng: np.random.Generator) -> Turn:
        return Turn(Task(*COURTESIES[rng.integers(len(COURTESIES))]))

    def _clips_alike(self, rng: np.random.Generator) -> list[Turn]:
        """Clips of one source and similar length, to be transcribed or turned into tool calls."""
        usable = {n: s for n, s in self.data.clips.items() if n in self.clips and n != SPOKEN_QUESTIONS}
        source = self._draw(usable, rng)
        clips = self.clips[source]
        pool = clips.draw(4 * self.size, rng)
        begin = int(rng.integers(0, 4)) * self.size
        picks = pool[begin : begin + self.size]
        return [Turn(hear(clips.records[i], rng), (), (source, int(i))) for i in picks]

    def _pictures_with_clips(self, rng: np.random.Generator) -> list[Turn]:
        """Pictures beside a clip: a spoken question about the picture, or words to write down."""
        usable = {n: s for n, s in self.data.clips.items() if n in self.clips}
        if self._draw(usable, rng) == SPOKEN_QUESTIONS:
            return [self._spoken_question(rng) for _ in range(self.size)]
        return [
            dataclasses.replace(turn, pictures=self._picture(rng).pictures) for turn in self._clips_alike(rng)
        ]

    def _spoken_question(self, rng: np.random.Generator) -> Turn:
        turn = self._picture(rng)
        ((source, index),) = turn.pictures
        pictures, clips = self.pictures[source], self.clips[SPOKEN_QUESTIONS]
        scene = pictures.scenes[index] if source in RENDERED else None
        answers = spoken_answers(source, pictures.labels[index], scene)
        fitting = [i for i, record in enumerate(clips.records) if record["text"] in answers]
        spoken = fitting[rng.integers(len(fitting))]
        answer = answers[clips.records[spoken]["text"]]
        return Turn(Task("", answer), turn.pictures, (SPOKEN_QUESTIONS, spoken))
