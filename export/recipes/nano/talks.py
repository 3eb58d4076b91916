"""Conversations about pictures and recordings: which media, which questions, in which turns.

Knows pictures, recordings and questions. Knows nothing of pixels, frames, tokens or models. Everything is a
pure function of a random generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from phirt_train.data.messages import COURTESIES, Conversation, assistant, system, user

from .media import RENDERED, SPOKEN_QUESTIONS, Clip, Picture
from .questions import Question, about_recording, about_scene, name_picture, spoken_answers

# How often a picture or a recording of each source stands in a conversation with several media.
PICTURE_SHARES = {
    "clothing": 0.2, "caltech101": 0.29, "grocery": 0.21, "shapes": 0.24, "words": 0.04, "flags": 0.02,
}  # fmt: skip
CLIP_SHARES = {"fsdd": 0.55, "spoken_digits": 0.45}


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a user shows, plays and asks, and the answer to learn."""

    question: Question
    pictures: tuple[Picture, ...] = ()
    clips: tuple[Clip, ...] = ()


def conversation(turns: Sequence[Turn]) -> Conversation:
    """The turns as messages; the first one's question has the instructions."""
    messages = [system(turns[0].question.system)] if turns[0].question.system else []
    for turn in turns:
        question = turn.question
        images = [f"../{picture.path}" for picture in turn.pictures]
        audio = [f"../{clip.path}" for clip in turn.clips]
        messages += [
            user(question.prompt, images, audio),
            assistant(question.answer, question.tool_calls),
        ]
    return messages


def ask(source: str, picture: Picture, rng: np.random.Generator) -> Question:
    """A question about one picture."""
    if picture.scene is not None:
        return about_scene(picture.scene, rng)
    return name_picture(source, picture.label, rng)


class Talks:
    """Draws conversations from training pictures and recordings."""

    def __init__(
        self, pictures: Mapping[str, Sequence[Picture]], clips: Mapping[str, Sequence[Clip]], seed: int
    ) -> None:
        self.pictures, self.clips = pictures, clips
        self.rng = np.random.default_rng(seed)

    def about_each(self, source: str, times: int) -> Iterator[Conversation]:
        """So many questions about each picture of a source."""
        for _ in range(times):
            for picture in self.pictures[source]:
                yield conversation([Turn(ask(source, picture, self.rng), (picture,))])

    def of_each_clip(self, source: str, times: int) -> Iterator[Conversation]:
        """So many requests about each recording of a source."""
        for _ in range(times):
            for clip in self.clips[source]:
                yield conversation([Turn(about_recording(clip.record, self.rng), (), (clip,))])

    def kinds(self) -> dict[str, str]:
        """What is drawn by `several`: the names of its kinds, and what each is."""
        kinds = {
            "two_pictures": "a question about one of two pictures",
            "then_picture": "a picture, then another",
            "then_thanks": "a picture, then thanks",
            "then_clip": "a picture, then a recording to write down",
            "then_clip_thanks": "a picture, a recording, then thanks",
            "with_clip": "a picture beside a recording to write down",
        }
        if SPOKEN_QUESTIONS in self.clips:
            kinds["spoken_question"] = "a picture beside a spoken question about it"
        return kinds

    def several(self, kind: str, count: int) -> Iterator[Conversation]:
        """So many conversations of a kind."""
        drawn: dict[str, Callable[[], list[Turn]]] = {
            "two_pictures": self._two_pictures,
            "then_picture": self._then_picture,
            "then_thanks": lambda: [self._picture(), self._courtesy()],
            "then_clip": lambda: [self._picture(), self._clip()],
            "then_clip_thanks": lambda: [self._picture(), self._clip(), self._courtesy()],
            "with_clip": self._with_clip,
            "spoken_question": self._spoken_question,
        }
        for _ in range(count):
            yield conversation(drawn[kind]())

    def _source(self, shares: Mapping[str, float]) -> str:
        names, weights = list(shares), np.array(list(shares.values()))
        return names[int(self.rng.choice(len(names), p=weights / weights.sum()))]

    def _drawn(self, without: Sequence[str] = ()) -> tuple[str, Picture]:
        source = self._source({name: s for name, s in PICTURE_SHARES.items() if name not in without})
        return source, self.pictures[source][int(self.rng.integers(len(self.pictures[source])))]

    def _picture(self, without: Sequence[str] = ()) -> Turn:
        source, picture = self._drawn(without)
        return Turn(ask(source, picture, self.rng), (picture,))

    def _clip(self) -> Turn:
        source = self._source({name: s for name, s in CLIP_SHARES.items() if name in self.clips})
        clip = self.clips[source][int(self.rng.integers(len(self.clips[source])))]
        return Turn(about_recording(clip.record, self.rng), (), (clip,))

    def _two_pictures(self) -> list[Turn]:
        pair = [self._picture(without=RENDERED), self._picture()]
        is_first = bool(self.rng.random() < 0.5)
        shown = pair if is_first else pair[::-1]
        asked = f"What is in the {'first' if is_first else 'second'} picture?"
        pictures = tuple(turn.pictures[0] for turn in shown)
        return [Turn(Question(asked, pair[0].question.answer), pictures)]

    def _then_picture(self) -> list[Turn]:
        following = self._picture(without=RENDERED)
        if self.rng.random() < 0.3:
            following = dataclasses.replace(
                following, question=Question("And this?", following.question.answer)
            )
        return [self._picture(), following]

    def _courtesy(self) -> Turn:
        return Turn(Question(*COURTESIES[self.rng.integers(len(COURTESIES))]))

    def _with_clip(self) -> list[Turn]:
        return [dataclasses.replace(self._clip(), pictures=self._picture().pictures)]

    def _spoken_question(self) -> list[Turn]:
        source, picture = self._drawn()
        answers = spoken_answers(source, picture.label, picture.scene)
        fitting = [clip for clip in self.clips[SPOKEN_QUESTIONS] if clip.record["text"] in answers]
        clip = fitting[int(self.rng.integers(len(fitting)))]
        return [Turn(Question("", answers[clip.record["text"]]), (picture,), (clip,))]
