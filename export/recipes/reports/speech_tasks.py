"""Conversations about recordings, one file a task: what speech models are trained for beside transcription.

talks/asr.<source>.jsonl    write down what is said
talks/ast.<split>.jsonl     speech translation, English to French and French to English
talks/sqa.<split>.jsonl     a spoken question with the choices in writing
talks/sqqa.<split>.jsonl    a recording that is a question: answer it
talks/ssum.<split>.jsonl    a story that is read out: say in a line what it is about
talks/au.<split>.jsonl      audio understanding: tones and digits to count and to compare
speech/<source>.jsonl       recordings with their words, as nano has them

Knows the data package, the voices and nano's recordings. Knows nothing of frames or tokens. Made speech is
left out where espeak-ng is not installed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
from numpy.typing import NDArray

from phirt.fields import Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.preparation import PreparationTask
from phirt_train.synthetic.speech_tasks import (
    Recorded,
    SpokenTurn,
    beeps,
    digit_counts,
    record,
    spoken_countries,
    spoken_stories,
    spoken_trivia,
    translations,
    write_tasks,
)

from ..nano.media import Clip, write_recordings, write_voices
from ..nano.questions import about_recording
from ..nano.voices import is_installed, spoken

_FRENCH = ("fr-fr", "fr-be", "fr-ch")
_LONGEST = 12  # words of a sentence that is translated
_DIGITS = 200  # recordings of single digits that are put together
_EVERY = 10  # of so many items one is held out


@dataclasses.dataclass(frozen=True)
class SpeechTasks:
    """Recordings, and what is asked about them.

    Attributes:
        sentences, digits: made recordings to write down.
        each: items of each of the other tasks, as far as there is text for them.
        story_words: most words of a story that is read out.
    """

    sentences: Annotated[int, Range(1, 1_000_000)] = 1500
    digits: Annotated[int, Range(1, 1_000_000)] = 500
    each: Annotated[int, Range(2, 1_000_000)] = 600
    story_words: Annotated[int, Range(1, 100_000)] = 120

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        clips, new_speaker = write_recordings(task.data, task.output, task.note)
        counts = {"spoken_digits": self.digits, "spoken_sentences": self.sentences}
        clips |= write_voices(task.data, task.output, counts, task.seed, task.note)
        for source, found in {**clips, "new_speaker": new_speaker}.items():
            with_words = [clip for clip in found if clip.record.get("text") is not None]
            if with_words:
                talks = ({"messages": one} for one in _transcriptions(with_words, task.seed))
                write_lines(task.output / f"talks/asr.{source}.jsonl", talks)
        sounds = itertools.chain(beeps(self.each // 2, task.seed), _digits(task, clips["fsdd"], self.each))
        _write(task, "au", itertools.islice(sounds, self.each))
        if is_installed():
            self._speak(task)

    def _speak(self, task: PreparationTask) -> None:
        text, seed = task.data / "text", task.seed
        stories = list(read_records(text / "stories_en_fr.train.jsonl.xz"))
        french = functools.partial(spoken, voices=_FRENCH)
        both = (
            record(self._some(translations(stories, seed, _LONGEST), seed, 2), spoken, seed),
            record(self._some(_to_english(stories), seed, 2), french, seed),
        )
        _write(task, "ast", (one for pair in zip(*both, strict=False) for one in pair))
        told = spoken_stories(read_records(text / "stories.train.jsonl.xz"), seed, self.story_words)
        for name, turns in (
            ("sqa", spoken_trivia(read_records(text / "trivia.train.jsonl.xz"), seed)),
            ("sqqa", spoken_countries(read_records(text / "countries.train.jsonl.xz"))),
            ("ssum", told),
        ):
            task.note(f"speaking {name}")
            _write(task, name, record(self._some(turns, seed), spoken, seed))

    def _some(self, turns: Iterable[SpokenTurn], seed: int, parts: int = 1) -> list[SpokenTurn]:
        """So many turns of a task, drawn from all there are; of one of its `parts`."""
        found = list(turns)
        order = np.random.default_rng(seed).permutation(len(found))[: -(-self.each // parts)]
        return [found[int(index)] for index in order]


def _to_english(stories: Iterable[dict[str, list[dict[str, str]]]]) -> Iterator[SpokenTurn]:
    for page in (page for story in stories for page in story["pages"]):
        if page.get("en") and page.get("fr") and len(page["fr"].split()) <= _LONGEST:
            asked = "Translate the audio to English."
            yield SpokenTurn("ast", " ".join(page["fr"].split()), asked, " ".join(page["en"].split()))


def _digits(task: PreparationTask, clips: Sequence[Clip], count: int) -> Iterator[Recorded]:
    """Single digits one after the other; the clips are of one rate."""
    few = clips[:: max(1, len(clips) // _DIGITS)]
    return digit_counts([_read(task.output / clip.path) for clip in few], count, task.seed)


def _read(path: Path) -> tuple[NDArray[np.float32], int]:
    samples, rate = soundfile.read(path, dtype="float32")
    return samples, int(rate)


def _transcriptions(clips: Sequence[Clip], seed: int) -> Iterator[Conversation]:
    rng = np.random.default_rng(seed)
    for clip in clips:
        question = about_recording(clip.record, rng)
        yield [user(question.prompt, (), [f"../{clip.path}"]), assistant(question.answer)]


def _write(task: PreparationTask, name: str, recorded: Iterable[Recorded]) -> None:
    """Every tenth item is held out, from the second on."""
    found = list(recorded)
    folder: Path = task.output / "talks"
    kept = [one for index, one in enumerate(found) if index % _EVERY != 1]
    write_tasks(folder, f"{name}.train", kept)
    write_tasks(folder, f"{name}.val", found[1::_EVERY])
