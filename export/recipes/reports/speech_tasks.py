"""Conversations about recordings, one file a task: what speech models are trained for beside transcription.

talks/asr.<source>.jsonl    write down what is said
talks/ast.<split>.jsonl     speech translation, English to French and French to English
talks/sqa.<split>.jsonl     a question about what a recording says
talks/sqqa.<split>.jsonl    a recording that is a question: answer it
talks/ssum.<split>.jsonl    a story that is read out: say in a line what it is about
talks/au.<split>.jsonl      audio understanding: tones that rise, fall, or are counted
speech/<source>.jsonl       recordings with their words, as nano has them

Knows the data package, the voices and nano's recordings. Knows nothing of frames or tokens. Made speech is
left out where espeak-ng is not installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile

from phirt.fields import Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.preparation import PreparationTask

from ..nano.media import Clip, write_recordings, write_voices
from ..nano.questions import about_recording
from ..nano.voices import VOICES, is_installed, spoken
from .tones import RATE, draw_tones

_FRENCH = ("fr-fr", "fr-be", "fr-ch")
_LONGEST = 12  # words of a sentence that is translated
_TOLD = 40  # words of a story that are read out
_EVERY = 10  # of so many items one is held out


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What is said, what is asked beside it in writing, and the answer."""

    said: str
    asked: str
    answer: str
    voices: Sequence[str] = VOICES


@dataclasses.dataclass(frozen=True)
class SpeechTasks:
    """Recordings, and what is asked about them.

    Attributes:
        sentences, digits: made recordings to write down.
        each: items of each of the other tasks, as far as there is text for them.
    """

    sentences: Annotated[int, Range(1, 1_000_000)] = 1500
    digits: Annotated[int, Range(1, 1_000_000)] = 500
    each: Annotated[int, Range(2, 1_000_000)] = 600

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        clips, new_speaker = write_recordings(task.data, task.output, task.note)
        counts = {"spoken_digits": self.digits, "spoken_sentences": self.sentences}
        clips |= write_voices(task.data, task.output, counts, task.seed, task.note)
        for source, found in {**clips, "new_speaker": new_speaker}.items():
            with_words = [clip for clip in found if clip.record.get("text") is not None]
            if with_words:
                _write(task, f"asr.{source}", _transcriptions(with_words, task.seed))
        self._play_tones(task)
        for name, read in _TASKS.items() if is_installed() else ():
            task.note(f"speaking {name}")
            self._speak(task, name, list(read(task.data)))

    def _play_tones(self, task: PreparationTask) -> None:
        folder = task.output / "media/au"
        folder.mkdir(parents=True, exist_ok=True)
        talks = []
        for index in range(self.each):
            sound = draw_tones(np.random.default_rng((task.seed, index)))
            soundfile.write(folder / f"{index:05}.wav", sound.samples, RATE, "PCM_16")
            talks.append([user(sound.question, (), [f"../media/au/{index:05}.wav"]), assistant(sound.answer)])
        _write_split(task, "au", talks)

    def _speak(self, task: PreparationTask, name: str, found: Sequence[Spoken]) -> None:
        order = np.random.default_rng(task.seed).permutation(len(found))[: self.each]
        chosen = [found[int(index)] for index in order]
        folder = task.output / f"media/{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for voices in dict.fromkeys(tuple(one.voices) for one in chosen):
            own = [index for index, one in enumerate(chosen) if tuple(one.voices) == voices]
            sounds = spoken([chosen[index].said for index in own], task.seed, voices)
            for index, (_, wav) in zip(own, sounds, strict=True):
                (folder / f"{index:05}.wav").write_bytes(wav)
        talks = [
            [user(one.asked, (), [f"../media/{name}/{index:05}.wav"]), assistant(one.answer)]
            for index, one in enumerate(chosen)
        ]
        _write_split(task, name, talks)


def _transcriptions(clips: Sequence[Clip], seed: int) -> Iterator[Conversation]:
    rng = np.random.default_rng(seed)
    for clip in clips:
        question = about_recording(clip.record, rng)
        yield [user(question.prompt, (), [f"../{clip.path}"]), assistant(question.answer)]


def _write(task: PreparationTask, name: str, talks: Iterable[Conversation]) -> None:
    write_lines(task.output / f"talks/{name}.jsonl", ({"messages": talk} for talk in talks))


def _write_split(task: PreparationTask, name: str, talks: Sequence[Conversation]) -> None:
    """Every tenth item is held out, from the second on."""
    _write(task, f"{name}.train", (talk for index, talk in enumerate(talks) if index % _EVERY != 1))
    _write(task, f"{name}.val", talks[1::_EVERY])


def _translations(data: Path) -> Iterator[Spoken]:
    for record in read_records(data / "text/stories_en_fr.train.jsonl.xz"):
        for page in record["pages"]:
            english, french = page["en"], page["fr"]
            if 1 < len(english.split()) <= _LONGEST and 1 < len(french.split()) <= _LONGEST:
                yield Spoken(english, "Translate the audio to French.", french)
                yield Spoken(french, "Translate the audio to English.", english, _FRENCH)


def _countries(data: Path) -> Iterator[tuple[str, str, str, str]]:
    for record in read_records(data / "text/countries.train.jsonl.xz"):
        facts = record["name"], record.get("capital"), record.get("continent"), record.get("currency")
        if all(facts):
            name, capital, continent, currency = (str(fact) for fact in facts)
            yield name, capital, continent, currency


def _questions_about_speech(data: Path) -> Iterator[Spoken]:
    for name, capital, continent, currency in _countries(data):
        said = f"{name} is in {continent}. Its capital is {capital}, and one pays with the {currency}."
        yield Spoken(said, "Which country is it about?", name)
        yield Spoken(said, "What is the capital?", capital)
        yield Spoken(said, "On which continent is it?", continent)


def _spoken_queries(data: Path) -> Iterator[Spoken]:
    for name, capital, continent, _ in _countries(data):
        yield Spoken(f"What is the capital of {name}?", "", capital)
        yield Spoken(f"On which continent is {name}?", "", continent)
    for a in range(10):
        for b in range(10):
            yield Spoken(f"What is {a} plus {b}?", "", str(a + b))


def _summaries(data: Path) -> Iterator[Spoken]:
    for record in read_records(data / "text/stories.train.jsonl.xz"):
        told = " ".join(" ".join(record["pages"]).split()[:_TOLD])
        yield Spoken(told, "Summarise the audio in a line.", record["title"])


_TASKS: Mapping[str, Callable[[Path], Iterator[Spoken]]] = {
    "ast": _translations,
    "sqa": _questions_about_speech,
    "sqqa": _spoken_queries,
    "ssum": _summaries,
}
