"""Speech tasks: what is said, asked and answered; sounds that are what their answers say."""

from __future__ import annotations

import importlib.util
import io
import sys
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from phirt_train.data.records import Conversation, read_records
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
    understood,
    write_tasks,
)

STORIES = [{"title": "Goat", "pages": ["The goat ran.\nIt was late.", "It slept. All was well."]}]
NUMBERS = ("Zero.", "One.", "Two.", "Three.", "Four.", "Five.", "Six.")


def _speak(texts: Sequence[str], seed: int) -> Iterator[tuple[str, bytes]]:
    """A click for each word."""
    for text in texts:
        out = io.BytesIO()
        samples = np.zeros(800 * len(text.split()), np.int16)
        samples[::800] = 9000
        soundfile.write(out, samples, 8000, "PCM_16", format="WAV")
        yield text, out.getvalue()


def test_turns_of_each_task() -> None:
    page = {"en": "It was\ntall.", "fr": "Il était grand."}
    (ast,) = translations([{"pages": [page, {"en": "word " * 40, "fr": "mot"}, {"en": "a"}]}], 0)
    assert (ast.task, ast.said, ast.answer) == ("ast", "It was tall.", "Il était grand.")
    (sqa,) = spoken_trivia([{"question": "What floats?", "answer": "wood", "choices": ["wood", "iron"]}], 0)
    assert sqa.said == "What floats?" and sqa.answer == "wood" and "iron" in sqa.prompt
    sqqa = list(spoken_countries([{"name": "Norway", "capital": "Oslo", "currency": "Krone"}]))
    assert [(one.said, one.prompt, one.answer) for one in sqqa] == [
        ("What is the capital of Norway?", "", "Oslo."),
        ("What is the currency of Norway?", "", "Krone."),
    ]
    (ssum,) = spoken_stories(STORIES, 0)
    assert ssum.said == "The goat ran. It was late. It slept. All was well."
    assert ssum.answer == "Goat: The goat ran. In the end: All was well."
    assert list(spoken_stories(STORIES, 0, most_words=5)) == []


def test_recordings_are_written_beside_their_conversations(tmp_path: Path) -> None:
    turns = list(spoken_countries([{"name": "Norway", "capital": "Oslo"}]))
    assert write_tasks(tmp_path, "sqqa", record(turns, _speak, 0)) == 1
    ((_, chat),) = read_records(tmp_path / "sqqa.jsonl", Conversation)
    (name,) = chat.messages[0].audio
    with wave.open(str(tmp_path / name)) as clip:
        assert clip.getnframes() == 800 * 6
    assert chat.messages[1].content == "Oslo."


def test_badly_spoken_recordings_are_left_out() -> None:
    turns = [
        SpokenTurn("sqqa", "What is this, then?", "", "a"),
        SpokenTurn("sqqa", "One two three four", "", "b"),
    ]
    heard = {0: "what is this then", 1: "one too three for"}
    recorded = [Recorded(turn, bytes([number])) for number, turn in enumerate(turns)]
    for most, answers in ((0.0, ["a"]), (0.49, ["a"]), (0.5, ["a", "b"])):
        kept = understood(recorded, lambda clip: heard[clip[0]], most)
        assert [one.turn.answer for one in kept] == answers


def _samples(recorded: Recorded) -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(io.BytesIO(recorded.recording))
    return samples, rate


def _tones(recorded: Recorded) -> list[tuple[float, float]]:
    """Pitch and seconds of the tones of a recording, found by their loudness."""
    samples, rate = _samples(recorded)
    frame = rate // 200
    loud = np.sqrt((samples[: len(samples) // frame * frame].reshape(-1, frame) ** 2).mean(1)) > 0.06
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(int), [0]))))
    found = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        part = samples[begin * frame : end * frame]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 16))
        found.append((float(spectrum.argmax()) * rate / (1 << 16), len(part) / rate))
    return found


def test_sounds_are_what_their_answers_say() -> None:
    made = list(beeps(60, 4))
    assert [one.recording for one in made] == [one.recording for one in beeps(60, 4)]
    for one in made:
        tones, answer = _tones(one), one.turn.answer
        if "How many" in one.turn.prompt:
            assert NUMBERS[len(tones)] == answer
            continue
        (first, second) = tones
        if "higher" in one.turn.prompt:
            assert answer == ("Higher." if second[0] > first[0] else "Lower.")
        else:
            assert answer == ("Longer." if second[1] > first[1] else "Shorter.")
    assert len({one.turn.answer for one in made}) > 8


def test_digits_are_counted() -> None:
    clip = np.concatenate([0.5 * np.ones(400, np.float32), np.zeros(200, np.float32)])
    for one in digit_counts([(clip, 8000)], 10, 1):
        samples, rate = _samples(one)
        begun = np.flatnonzero(np.diff((samples > 0.25).astype(int)) == 1)
        assert rate == 8000 and NUMBERS[len(begun) + (samples[0] > 0.25)] == one.turn.answer


@pytest.fixture(scope="module")
def voices() -> ModuleType:
    path = Path(__file__).parents[2] / "export/recipes/nano/voices.py"
    spec = importlib.util.spec_from_file_location("nano_voices", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nano_voices"] = module
    spec.loader.exec_module(module)
    if not module.is_installed():
        pytest.skip("espeak-ng is not installed")
    return module


def test_the_voices_of_nano_speak_the_turns(voices: ModuleType) -> None:
    turns = list(spoken_countries([{"name": "Norway", "capital": "Oslo", "continent": "Europe"}]))
    recorded = list(record(turns, voices.spoken, 3))
    assert [one.turn for one in recorded] == turns
    for one in recorded:
        samples, rate = _samples(one)
        assert 0.5 < len(samples) / rate < 8 and np.abs(samples).max() > 0.05
