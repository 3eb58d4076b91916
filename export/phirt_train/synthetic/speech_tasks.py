"""Speech tasks beside transcription: translation (AST), spoken questions with and without a written prompt
(SQA, SQQA), summaries of what is said (SSUM), and understanding of sounds (AU).

Who speaks is given: a function of texts and a seed, such as that of nano's recipe around espeak-ng.

Knows texts, tones and recordings as bytes. Knows nothing of voices, frames, tokens or models.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from phirt_quant.word_errors import word_errors
from phirt_train.data.records import Conversation, TrainingMessage
from phirt_train.data.writing import write_records
from phirt_train.synthetic.summaries import story_outline

Task = Literal["ast", "sqa", "sqqa", "ssum", "au"]
Speak = Callable[[Sequence[str], int], Iterator[tuple[str, bytes]]]
Record = Mapping[str, Any]
Samples = NDArray[np.float32]
_RATE = 16_000
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_TRANSLATE = ("Translate the audio to French.", "What is said, in French?", "Say this in French.")
_SUMMARISE = ("Summarise the recording in one line.", "What is the recording about?", "Sum up what is said.")


@dataclasses.dataclass(frozen=True)
class SpokenTurn:
    """What is to be said, what is written beside it, and the answer to learn."""

    task: Task
    said: str
    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A turn with its recording, a file's bytes."""

    turn: SpokenTurn
    recording: bytes


def translations(stories: Iterable[Record], seed: int, most_words: int = 30) -> Iterator[SpokenTurn]:
    """English pages to be said in French; `stories` have both languages."""
    rng = np.random.default_rng(seed)
    for page in (page for story in stories for page in story["pages"]):
        if page.get("en") and page.get("fr") and len(page["en"].split()) <= most_words:
            prompt = _TRANSLATE[rng.integers(len(_TRANSLATE))]
            yield SpokenTurn("ast", _one_line(page["en"]), prompt, _one_line(page["fr"]))


def spoken_trivia(questions: Iterable[Record], seed: int, most_words: int = 25) -> Iterator[SpokenTurn]:
    """Questions that are heard, with the choices written."""
    rng = np.random.default_rng(seed)
    for record in questions:
        if len(record["question"].split()) <= most_words:
            choices = [record["choices"][i] for i in rng.permutation(len(record["choices"]))]
            prompt = f"Answer the spoken question. Choose one: {', '.join(choices)}."
            yield SpokenTurn("sqa", _one_line(record["question"]), prompt, record["answer"])


def spoken_countries(countries: Iterable[Record]) -> Iterator[SpokenTurn]:
    """Questions that are heard alone: nothing is written beside them."""
    for record in countries:
        name = record["name"]
        for key, asked in (
            ("capital", f"What is the capital of {name}?"),
            ("continent", f"On which continent is {name}?"),
            ("currency", f"What is the currency of {name}?"),
        ):
            if record.get(key):
                yield SpokenTurn("sqqa", asked, "", f"{record[key]}.")


def spoken_stories(stories: Iterable[Record], seed: int, most_words: int = 400) -> Iterator[SpokenTurn]:
    """Whole stories to be summed up in a line."""
    rng = np.random.default_rng(seed)
    for story in stories:
        said = _one_line(" ".join(story["pages"]))
        if len(said.split()) <= most_words:
            outline = _one_line(story_outline(story["title"], story["pages"]))
            yield SpokenTurn("ssum", said, _SUMMARISE[rng.integers(len(_SUMMARISE))], outline)


def record(turns: Iterable[SpokenTurn], speak: Speak, seed: int) -> Iterator[Recorded]:
    """The turns, spoken."""
    planned = list(turns)
    spoken = speak([turn.said for turn in planned], seed)
    for turn, (said, recording) in zip(planned, spoken, strict=True):
        assert said == turn.said
        yield Recorded(turn, recording)


def beeps(count: int, seed: int) -> Iterator[Recorded]:
    """Tones to be counted, or compared in pitch or length."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        yield (_counted, _compared_in_pitch, _compared_in_length)[number % 3](rng)


def _counted(rng: np.random.Generator) -> Recorded:
    count, pitch = int(rng.integers(1, 7)), float(rng.uniform(300, 1200))
    tones = [_tone(pitch, 0.15, rng) for _ in range(count)]
    return _sound(tones, "How many beeps are there?", f"{_NUMBERS[count]}.".capitalize(), rng)


def _compared_in_pitch(rng: np.random.Generator) -> Recorded:
    low = float(rng.uniform(250, 700))
    is_higher, pair = bool(rng.random() < 0.5), [low, low * float(rng.uniform(1.3, 2.0))]
    tones = [_tone(pitch, 0.3, rng) for pitch in (pair if is_higher else pair[::-1])]
    answer = "Higher." if is_higher else "Lower."
    return _sound(tones, "Is the second tone higher or lower than the first?", answer, rng)


def _compared_in_length(rng: np.random.Generator) -> Recorded:
    short = float(rng.uniform(0.1, 0.3))
    is_longer, pair = bool(rng.random() < 0.5), [short, short * float(rng.uniform(1.8, 3.0))]
    pitch = float(rng.uniform(300, 1200))
    tones = [_tone(pitch, seconds, rng) for seconds in (pair if is_longer else pair[::-1])]
    answer = "Longer." if is_longer else "Shorter."
    return _sound(tones, "Is the second tone longer or shorter than the first?", answer, rng)


def digit_counts(clips: Sequence[tuple[Samples, int]], count: int, seed: int) -> Iterator[Recorded]:
    """Recordings of single digits one after the other, to be counted. `clips` are samples with their rate,
    the same for all.
    """
    assert len({rate for _, rate in clips}) == 1
    rate = clips[0][1]
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        chosen = [clips[i][0] for i in rng.integers(len(clips), size=int(rng.integers(1, 7)))]
        parts = [part for clip in chosen for part in (clip, _pause(rng, rate))]
        turn = SpokenTurn("au", "", "How many digits are said?", f"{_NUMBERS[len(chosen)]}.".capitalize())
        yield Recorded(turn, _wav(np.concatenate(parts), rate))


def understood(
    recorded: Iterable[Recorded], transcribe: Callable[[bytes], str], most: float
) -> Iterator[Recorded]:
    """Those recordings that a transcriber hears with at most this word error rate."""
    for one in recorded:
        wanted = _words(one.turn.said)
        if wanted and word_errors(wanted, _words(transcribe(one.recording))) <= most * len(wanted.split()):
            yield one


def write_tasks(folder: Path, name: str, recorded: Iterable[Recorded]) -> int:
    """Writes `name`.jsonl with conversations, and the recordings beside it. Returns how many."""
    media = folder / f"{name}.media"
    media.mkdir(parents=True, exist_ok=True)

    def written() -> Iterator[Conversation]:
        for number, one in zip(itertools.count(), recorded):
            path = media / f"{number:05}.wav"
            path.write_bytes(one.recording)
            asked = TrainingMessage("user", one.turn.prompt, audio=(f"{media.name}/{path.name}",))
            yield Conversation((asked, TrainingMessage("assistant", one.turn.answer)))

    return write_records(folder / f"{name}.jsonl", written())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> str:
    """Lower case words without punctuation."""
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split())


def _tone(pitch: float, seconds: float, rng: np.random.Generator) -> Samples:
    """A sine with soft ends."""
    time = np.arange(int(seconds * _RATE)) / _RATE
    edge = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.01)
    return np.asarray(rng.uniform(0.2, 0.6) * edge * np.sin(2 * np.pi * pitch * time), np.float32)


def _pause(rng: np.random.Generator, rate: int) -> Samples:
    return np.zeros(int(rng.uniform(0.12, 0.35) * rate), np.float32)


def _sound(tones: Sequence[Samples], prompt: str, answer: str, rng: np.random.Generator) -> Recorded:
    parts = [part for tone in tones for part in (_pause(rng, _RATE), tone)]
    samples = np.concatenate([*parts, _pause(rng, _RATE)])
    noise = rng.uniform(0, 0.01) * rng.standard_normal(len(samples))
    return Recorded(SpokenTurn("au", "", prompt, answer), _wav(samples + noise.astype(np.float32), _RATE))


def _wav(samples: Samples, rate: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, "PCM_16", format="WAV")
    return out.getvalue()
