"""Golden vectors: conversations with the ids that phirt answers, which every host has to give as well.

Knows which conversations tell hosts apart: text, a system message, a second turn, a picture, a recording,
both. An answer ends before the first token that another processor's rounding could turn into another one; of
several questions, pictures and recordings those are taken whose answer is sure for longest. Where nothing is
sure, the ids of the prompt are all that is compared, and the conversation ends. Knows nothing of graphs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import phirt
from phirt_export.mobile.golden_media import PICTURES, RATE, RECORDINGS, ppm, wav

_MOST_TOKENS = 24
_ENOUGH_TOKENS = 8  # sure ones: no other question is tried then
# Kernels that multiply in int8 differ between processors by this much in a logit, or less.
_NEAR_TIE = 0.35


@dataclasses.dataclass(frozen=True)
class Question:
    """One turn: what may be asked, and whether a picture and a recording come with it."""

    texts: tuple[str, ...]
    picture: bool = False
    recording: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One conversation."""

    name: str
    questions: tuple[Question, ...]
    system: str | None = None

    @property
    def modalities(self) -> set[str]:
        """What a model must take for it."""
        pictures = {"image"} if any(one.picture for one in self.questions) else set()
        return pictures | ({"audio"} if any(one.recording for one in self.questions) else set())


_TEXTS = (
    "Who are you?",
    "What is the capital of France?",
    "Say hello.",
    "Tell me about the sea.",
    "Count to five.",
)
_PICTURE = (
    "What is this?",
    "How many shapes are there?",
    "What colour is the circle?",
    "Describe the image.",
)
_CLIP = ("Transcribe the audio clip into text.", "What do you hear?", "Write down what is said.")
_BOTH = ("What do you see and hear?", "How many shapes are there?")
_MORE = ("And what else?", "Which colours?", "Why?", "Thank you!")
_CASES = (
    Case("text", (Question(_TEXTS),)),
    Case("system", (Question(_TEXTS[2:]),), system="You are a friendly helper."),
    Case(
        "turns", (Question(("Hello!", *_TEXTS)), Question(_TEXTS), Question(("Thank you, naïve café 👍🏽!",)))
    ),
    Case("image", (Question(_PICTURE, picture=True),)),
    Case("clip", (Question(_CLIP, recording=True),)),
    Case("image, then text", (Question(_PICTURE, picture=True), Question(_MORE))),
    Case("image and clip", (Question(_BOTH, picture=True, recording=True),)),
)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What can be asked in a turn, and how many tokens of the answer are sure."""

    text: str
    picture: str | None
    recording: str | None
    sure: int = 0

    def arguments(self, most: int) -> dict[str, Any]:
        """What `Chat.send` takes."""
        given: dict[str, Any] = {"config": phirt.GenerationConfig(max_new_tokens=most, speculation=False)}
        if self.picture is not None:
            given["images"] = [PICTURES[self.picture]()]
        if self.recording is not None:
            given["audio"] = [(RECORDINGS[self.recording](), RATE)]
        return given


def golden_vectors(model: phirt.Model, folder: Path) -> dict[str, Any]:
    """The document of golden.json; the media that it names are written into `folder`."""
    takes = set(model.manifest.modalities)
    cases = [_answered(model, case) for case in _CASES if case.modalities <= takes]
    found = [case for case in cases if case is not None]
    for turn in (turn for case in found for turn in case["turns"]):
        if (picture := turn["image"]) is not None:
            (folder / picture).write_bytes(ppm(PICTURES[picture]()))
        if (recording := turn["audio"]) is not None:
            (folder / recording).write_bytes(wav(RECORDINGS[recording]()))
    return {"format": "phirt-golden", "version": 1, "cases": found}


def _answered(model: phirt.Model, case: Case) -> dict[str, Any] | None:
    """The case as golden.json has it; None where the model has no place for its system message."""
    chat = model.chat(case.system)
    turns: list[dict[str, Any]] = []
    for question in case.questions:
        try:
            attempt = _best(chat, question)
        except phirt.BundleError:
            if case.system is None:
                raise
            return None
        most = max(attempt.sure, 1)
        result = chat.send(attempt.text, **attempt.arguments(most)).result
        turns.append(
            {
                "text": attempt.text,
                "image": attempt.picture,
                "audio": attempt.recording,
                "max_new_tokens": most,
                "sure": attempt.sure > 0,
                "prompt_ids": list(result.prompt_token_ids),
                "ids": list(result.token_ids),
                "answer": result.text,
                "adapter": result.adapter,
            }
        )
        if not attempt.sure:  # what follows would depend on it
            break
    return {"name": case.name, "system": case.system, "turns": turns}


def _best(chat: phirt.Chat, question: Question) -> Attempt:
    """The attempt with the longest sure answer, or the first that is long enough."""
    best: Attempt | None = None
    for attempt in _attempts(question):
        tried = dataclasses.replace(attempt, sure=_sure(chat, attempt))
        if best is None or tried.sure > best.sure:
            best = tried
        if best.sure >= _ENOUGH_TOKENS:
            break
    assert best is not None
    return best


def _attempts(question: Question) -> Iterator[Attempt]:
    pictures = [*PICTURES] if question.picture else [None]
    recordings = [*RECORDINGS] if question.recording else [None]
    for text, picture, recording in itertools.product(question.texts, pictures, recordings):
        yield Attempt(text, picture, recording)


def _sure(chat: phirt.Chat, attempt: Attempt) -> int:
    """Asks a copy of the conversation, and looks how far the best token is from the second each time."""
    gaps: list[float] = []

    def look(logits: phirt.Logits, _: Sequence[int]) -> phirt.Logits:
        best = np.partition(logits, -2)[-2:]
        gaps.append(float(best[1] - best[0]))
        return logits

    chat.fork().send(attempt.text, **attempt.arguments(_MOST_TOKENS), logits_processors=[look]).finish()
    sure = next((at for at, gap in enumerate(gaps) if gap < _NEAR_TIE), len(gaps))
    return min(sure, _MOST_TOKENS)
