"""Golden vectors: conversations with the ids that phirt answers, which every host has to give as well.

Knows which conversations tell hosts apart: text, a system message, a second turn, a picture, a recording,
both. The media are drawn and played here, so that a package needs none of anybody's. An answer ends before
the first token that another processor's rounding could turn into another one. Knows nothing of graphs.
"""

from __future__ import annotations

import dataclasses
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import phirt

PICTURE, RECORDING = "golden-picture.ppm", "golden-recording.wav"
_RATE = 16000
_MOST_TOKENS = 24
# Kernels that multiply in int8 differ between processors by this much in a logit, or less.
_NEAR_TIE = 0.35


@dataclasses.dataclass(frozen=True)
class Question:
    """One turn: what may be asked, and whether the picture and the recording come with it. Of several texts
    the one is taken whose answer is sure for longest.
    """

    texts: tuple[str, ...]
    picture: bool = False
    recording: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One conversation."""

    name: str
    questions: tuple[Question, ...]
    system: str | None = None


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
_MORE = ("And what else?", "Which colours?", "Why?")
_CASES = (
    Case("text", (Question(_TEXTS),)),
    Case("system", (Question(_TEXTS[2:]),), system="You are a friendly helper."),
    Case("turns", (Question(("Hello!",)), Question(_TEXTS), Question(("Thank you, naïve café 👍🏽!",)))),
    Case("image", (Question(_PICTURE, picture=True),)),
    Case("clip", (Question(_CLIP, recording=True),)),
    Case("image, then text", (Question(_PICTURE, picture=True), Question(_MORE))),
    Case("image and clip", (Question(_BOTH, picture=True, recording=True),)),
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question with the text that was chosen, and how many tokens of its answer are sure."""

    text: str
    sure: int


class Examiner:
    """Asks a model. A picture and a recording are drawn and played once, and written into `folder`."""

    def __init__(self, model: phirt.Model, folder: Path) -> None:
        self._model = model
        self._takes = set(model.manifest.modalities)
        self._picture, self._recording = draw_picture(), play_recording()
        if "image" in self._takes:
            height, width, _ = self._picture.shape
            head = b"P6\n%d %d\n255\n" % (width, height)
            (folder / PICTURE).write_bytes(head + self._picture.tobytes())
        if "audio" in self._takes:
            with wave.open(str(folder / RECORDING), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(_RATE)
                file.writeframes(self._recording.tobytes())

    def can_ask(self, case: Case) -> bool:
        """Whether the model takes all media of the conversation."""
        needed = {"image"} if any(one.picture for one in case.questions) else set()
        needed |= {"audio"} if any(one.recording for one in case.questions) else set()
        return needed <= self._takes

    def answered(self, case: Case) -> dict[str, Any] | None:
        """The case as golden.json has it; None where the model has no place for its system message."""
        chat = self._model.chat(case.system)
        turns = []
        for question in case.questions:
            try:
                asked = max(
                    (self._try(chat, question, text) for text in question.texts), key=lambda one: one.sure
                )
            except phirt.BundleError:
                if case.system is None:
                    raise
                return None
            # A host is asked for as many tokens as are sure; at least for one, so that each turn is run.
            most = min(max(asked.sure, 1), _MOST_TOKENS)
            config = phirt.GenerationConfig(max_new_tokens=most, speculation=False)
            result = chat.send(asked.text, **self._media(question), config=config).result
            turns.append(
                {
                    "text": asked.text,
                    "image": PICTURE if question.picture else None,
                    "audio": RECORDING if question.recording else None,
                    "max_new_tokens": most,
                    "prompt_ids": list(result.prompt_token_ids),
                    "ids": list(result.token_ids),
                    "answer": result.text,
                    "adapter": result.adapter,
                }
            )
        return {"name": case.name, "system": case.system, "turns": turns}

    def _try(self, chat: phirt.Chat, question: Question, text: str) -> Asked:
        """Asks a copy of the conversation, and looks how far the best token is from the second each time."""
        gaps: list[float] = []

        def look(logits: phirt.Logits, _: Sequence[int]) -> phirt.Logits:
            best = np.partition(logits, -2)[-2:]
            gaps.append(float(best[1] - best[0]))
            return logits

        config = phirt.GenerationConfig(max_new_tokens=_MOST_TOKENS, speculation=False)
        chat.fork().send(text, **self._media(question), config=config, logits_processors=[look]).finish()
        return Asked(text, next((at for at, gap in enumerate(gaps) if gap < _NEAR_TIE), len(gaps)))

    def _media(self, question: Question) -> dict[str, Any]:
        media: dict[str, Any] = {}
        if question.picture:
            media["images"] = [self._picture]
        if question.recording:
            media["audio"] = [(self._recording, _RATE)]
        return media


def golden_vectors(model: phirt.Model, folder: Path) -> dict[str, Any]:
    """The document of golden.json; the media that it names are written into `folder`."""
    examiner = Examiner(model, folder)
    cases = [examiner.answered(case) for case in _CASES if examiner.can_ask(case)]
    return {"format": "phirt-golden", "version": 1, "cases": [case for case in cases if case is not None]}


def draw_picture() -> npt.NDArray[np.uint8]:
    """uint8 [180, 240, 3]: a red disc, a green square and a blue triangle on a sky that gets lighter."""
    height, width = 180, 240
    y, x = np.mgrid[:height, :width]
    picture = np.empty((height, width, 3), np.uint8)
    picture[...] = (200 + 40 * y // height)[..., None]
    picture[..., 2] = 235
    picture[(x - 60) ** 2 + (y - 60) ** 2 < 38**2] = (210, 40, 40)
    picture[(abs(x - 175) < 34) & (abs(y - 62) < 34)] = (40, 160, 70)
    picture[(y > 105) & (y < 165) & (abs(x - 120) < (y - 105) // 2 + 4)] = (40, 70, 200)
    return picture


def play_recording() -> npt.NDArray[np.int16]:
    """int16 [24000], 16 kHz: a voice of three vowels, which is to say a buzz through moving resonances."""
    time = np.arange(_RATE * 3 // 2) / _RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 1.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / _RATE
    first = np.interp(time, [0, 0.5, 1.0, 1.5], [300, 700, 400, 350])
    second = np.interp(time, [0, 0.5, 1.0, 1.5], [2200, 1200, 900, 2000])
    sound = np.zeros_like(time)
    for number in range(1, 40):
        frequency = number * pitch
        weight = 1 / (1 + ((frequency - first) / 90) ** 2) + 0.5 / (1 + ((frequency - second) / 130) ** 2)
        sound += weight * np.sin(number * phase) * (frequency < _RATE / 2)
    sound *= np.clip(np.minimum(time, time[-1] - time) * 12, 0, 1) * (
        0.6 + 0.4 * np.cos(2 * np.pi * 2 * time)
    )
    samples: npt.NDArray[np.int16] = np.round(sound / np.abs(sound).max() * 12000).astype(np.int16)
    return samples
