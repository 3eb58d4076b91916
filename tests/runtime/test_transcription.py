"""Recordings of any length in words: segments, progress, cancelling, joins, what was cut. The words of the
tiny bundle mean nothing, but each piece gives the ones that it gives alone.
"""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import soundfile
from tiny_bundle import write_bundle

import phirt
from phirt.errors import BundleError, MediaError
from phirt.generate.results import FinishReason
from phirt.transcription import Segment, joined

SHORT = phirt.GenerationConfig(max_new_tokens=6)
RATE = 8000


def word(number: int, seconds: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(number)
    tone = np.sin(2 * np.pi * (200 + 70 * number) * np.arange(int(seconds * RATE)) / RATE + 0.3)
    return (0.4 * tone + 0.01 * rng.uniform(0.5, 1, len(tone))).astype(np.float32)


def recording(words: list[np.ndarray], gap: float = 0.7) -> np.ndarray:
    silence = np.zeros(int(gap * RATE), np.float32)
    return np.concatenate([part for each in words for part in (each, silence)])


def wav(samples: np.ndarray, kind: str = "WAV") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format=kind, subtype="FLOAT" if kind == "WAV" else None)
    return stream.getvalue()


def test_a_long_recording_says_what_its_parts_say(model):
    words = [word(number % 9) for number in range(60)]
    alone = [model.transcribe((each, RATE), config=SHORT) for each in words[:9]]
    transcription = model.transcribe_segments(wav(recording(words)), config=SHORT)
    segments = list(transcription)
    assert [segment.text for segment in segments] == [alone[number % 9] for number in range(60)]
    for number, segment in enumerate(segments):
        assert abs(segment.start - number * 1.1) < 0.01 and abs(segment.end - number * 1.1 - 0.4) < 0.01
    result = transcription.result
    assert result.text == " ".join(segment.text for segment in segments)
    assert result.segments == tuple(segments)
    assert result.seconds == pytest.approx(66.0)
    assert model.transcribe(wav(recording(words)), config=SHORT) == result.text


def test_a_short_recording_of_one_utterance_is_one_request_as_it_is(model, clip):
    expected = model.chat().send("Transcribe the audio clip into text.", audio=[clip], config=SHORT).text()
    (segment,) = model.transcribe_segments(clip, config=SHORT)
    assert (segment.text, segment.start, segment.end) == (expected.strip(), 0.0, 0.5)


def test_progress_and_length_are_told(model):
    seen: list[phirt.TranscriptionProgress] = []
    transcription = model.transcribe_segments(
        wav(recording([word(i) for i in range(40)])), config=SHORT, on_progress=seen.append
    )
    assert transcription.seconds == pytest.approx(44.0)
    assert transcription.result.seconds == pytest.approx(44.0)
    done = [step.done for step in seen]
    assert done == sorted(done) and done[-1] == pytest.approx(44.0) and len(seen) > 40
    assert {step.total for step in seen} == {transcription.seconds}


def test_segments_come_before_the_recording_is_read_to_its_end(model):
    data = wav(recording([word(i % 7) for i in range(100)]))
    stream = io.BytesIO(data)
    read = []
    transcription = model.transcribe_segments(stream, config=SHORT, on_progress=read.append)
    next(transcription)
    assert read[-1].done < 40
    transcription.close()
    assert len(transcription.transcript.segments) == 1
    assert transcription.transcript.finish_reason == "cancelled"
    assert list(transcription) == []


@pytest.mark.parametrize("way", ["method", "event"])
def test_cancelling_keeps_what_was_done(model, way):
    event = threading.Event()
    data = wav(recording([word(i % 7) for i in range(60)]))
    transcription = model.transcribe_segments(data, config=SHORT, cancel=event)
    first = [next(transcription) for _ in range(3)]
    (transcription.cancel if way == "method" else event.set)()
    assert list(transcription) == []
    assert transcription.result.segments == tuple(first)
    assert transcription.result.finish_reason == "cancelled"


def test_a_recording_that_is_damaged_further_on_gives_what_comes_before(model):
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, 800).astype(np.float32)
    data = wav(recording([np.concatenate([word(i % 7), noise]) for i in range(60)]), "FLAC")
    transcription = model.transcribe_segments(data[: len(data) * 9 // 10], config=SHORT)
    segments = []
    with pytest.raises(MediaError, match="damaged or incomplete"):
        segments.extend(transcription)
    assert len(transcription.transcript.segments) > 15


def test_silent_stretches_are_no_error_but_silence_is(model):
    quiet = np.zeros(45 * RATE, np.float32)
    segments = list(
        model.transcribe_segments((np.concatenate([quiet, word(1), quiet, word(2)]), RATE), config=SHORT)
    )
    assert [round(segment.start, 1) for segment in segments] == [45.0, 90.4]
    for seconds in (1, 70):
        with pytest.raises(MediaError, match="is silent: no sample reaches -90 dBFS"):
            model.transcribe((np.zeros(seconds * RATE, np.float32), RATE))
    with pytest.raises(MediaError, match="holds no samples"):
        model.transcribe(wav(np.zeros(0, np.float32)))


def test_samples_that_are_no_numbers_are_refused_by_the_recordings_name(model, tmp_path):
    samples = recording([word(i) for i in range(40)])
    samples[-RATE] = np.nan
    (tmp_path / "bad.wav").write_bytes(wav(samples))
    with pytest.raises(MediaError, match=r"bad\.wav holds samples that are no numbers"):
        model.transcribe(tmp_path / "bad.wav", config=SHORT)


def test_an_answer_that_was_cut_is_told(model):
    result = model.transcribe_segments((word(1), RATE), max_new_tokens=1).result
    assert result.finish_reason == "length"
    assert result.segments[0].finish_reason == "length"


def test_no_piece_is_longer_than_the_bundle_takes(model):
    assert model.manifest.limits.audio_seconds == 10.0
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 35 * RATE).astype(np.float32)
    segments = list(model.transcribe_segments((noise, RATE), config=SHORT))
    assert all(segment.end - segment.start <= 10.0 for segment in segments)


def test_pieces_are_as_long_as_the_bundle_likes_them(bundle):
    with phirt.load(bundle, threads=1, limits={"transcribe_seconds": 5.0}) as model:
        data = wav(recording([word(i % 7) for i in range(40)]))
        segments = list(model.transcribe_segments(data, config=SHORT))
        assert len(segments) == 8 and all(segment.end - segment.start < 5 for segment in segments)


def test_a_bundle_without_hearing_refuses(tmp_path):
    model = phirt.load(write_bundle(tmp_path, speech=False), threads=1)
    with pytest.raises(BundleError, match="takes no audio"):
        model.transcribe((word(1), RATE))


def segment(text: str, reason: FinishReason = "stop") -> Segment:
    return Segment(0.0, 1.0, text, reason)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            "we choose to go to the moon",
            "the moon in this decade",
            "we choose to go to the moon in this decade",
        ),
        ("we choose to go to the mo", "to the moon and do", "we choose to go to the moon and do"),
        (
            "Ask not what your country.",
            "country, can do for you",
            "Ask not what your country. can do for you",
        ),
        ("one two three", "four five six", "one two three four five six"),
        ("", "four five", "four five"),
        ("one two", "", "one two"),
        ("a b a b a b a b a b a b a b", "x y z", "a b a b a b a b a b a b a b x y z"),
    ],
)
def test_words_that_two_pieces_share_are_said_once(first, second, expected):
    assert " ".join(part.text for part in joined(segment(first), segment(second)) if part.text) == expected
