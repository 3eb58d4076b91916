"""Long recordings in pieces: where they are cut, against recordings whose pauses are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.encoders.pauses import PauseSplitter, Piece

RATE = 8000


def word(seconds: float, level: float = 0.3, seed: int = 0) -> np.ndarray:
    """Noise that is nowhere zero."""
    rng = np.random.default_rng(seed)
    samples = level * rng.uniform(0.5, 1, int(seconds * RATE)) * rng.choice([-1, 1], int(seconds * RATE))
    return samples.astype(np.float32)


def silence(seconds: float, level: float = 0.0, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    return (level * noise).astype(np.float32)


def pieces(
    samples: np.ndarray, *, longest: float = 30.0, fill: float = 0.0, block: int = 20_000
) -> list[Piece]:
    splitter = PauseSplitter(RATE, longest, fill)
    found = [
        piece
        for start in range(0, len(samples), block)
        for piece in splitter.feed(samples[start : start + block])
    ]
    return [*found, *splitter.finish()]


def laid_out(words: list[np.ndarray], gaps: list[float], noise: float = 0.0) -> tuple[np.ndarray, list[int]]:
    """Words with a gap before each, and one behind the last; and where each word begins."""
    parts, starts, position = [], [], 0
    for number, (each, gap) in enumerate(zip(words, gaps, strict=False)):
        pause = silence(gap, noise, seed=number)
        starts.append(position + len(pause))
        position += len(pause) + len(each)
        parts += [pause, each]
    return np.concatenate([*parts, silence(gaps[-1], noise, seed=99)]), starts


@given(
    lengths=st.lists(st.floats(0.12, 2.0), min_size=2, max_size=40),
    gap=st.floats(0.23, 3.0),
    block=st.integers(500, 100_000),
)
@settings(deadline=None, max_examples=30)
def test_words_between_dead_silence_come_out_to_the_sample(lengths, gap, block):
    words = [word(seconds, level=0.05 + 0.02 * (i % 20), seed=i) for i, seconds in enumerate(lengths)]
    samples, starts = laid_out(words, [gap] * (len(words) + 1))
    found = pieces(samples, block=block)
    assert [piece.start for piece in found] == starts
    for piece, expected in zip(found, words, strict=True):
        np.testing.assert_array_equal(piece.samples, expected)


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 5e-3])
def test_words_in_a_room_that_is_not_silent(noise):
    words = [word(0.4, seed=i) for i in range(60)]
    samples, starts = laid_out(words, [0.5] * 61, noise)
    found = pieces(samples)
    assert len(found) == 60
    for piece, start in zip(found, starts, strict=True):
        assert abs(piece.start - start) <= 160 and abs(len(piece.samples) - 3200) <= 320  # frames of 10 ms


def test_a_far_voice_among_near_ones_is_heard():
    words = [word(0.4, level=0.5 if i % 5 else 0.01, seed=i) for i in range(50)]
    samples, starts = laid_out(words, [0.6] * 51)
    assert [piece.start for piece in pieces(samples)] == starts


@pytest.mark.parametrize("seconds", [0.02, 0.5, 12.0, 29.8])
def test_one_utterance_that_is_not_long_is_left_whole(seconds):
    samples = np.concatenate([silence(0.1), word(seconds), silence(0.05)])
    (piece,) = pieces(samples)
    assert piece.start == 0
    np.testing.assert_array_equal(piece.samples, samples)


def test_pieces_are_filled_where_a_model_likes_them_long():
    words = [word(1.0, seed=i) for i in range(100)]
    samples, starts = laid_out(words, [0.5] * 101)
    found = pieces(samples, longest=30.0, fill=10.0)
    assert [len(piece.samples) for piece in found[:-1]] == [10 * RATE] * 14  # seven words and six pauses
    assert [piece.start for piece in found] == starts[::7]


def test_a_pause_of_minutes_is_not_kept():
    samples = np.concatenate([word(1.0), silence(200.0), word(1.0, seed=2)])
    found = pieces(samples, fill=30.0)
    assert [(piece.start, len(piece.samples)) for piece in found] == [(0, RATE), (201 * RATE, RATE)]


def test_speech_without_a_pause_is_cut_at_its_quietest():
    samples = np.concatenate([word(5.4), word(0.15, level=0.01), word(7.0, seed=3)])
    found = pieces(samples, longest=8.0)
    assert not any(piece.goes_on or piece.repeats for piece in found)
    cut = len(found[0].samples) / RATE
    assert 5.4 <= cut <= 5.55
    assert sum(len(piece.samples) for piece in found) == len(samples)


def test_noise_without_any_quiet_place_is_cut_with_a_second_in_common():
    samples = word(50.0)
    found = pieces(samples, longest=10.0)
    assert [piece.goes_on for piece in found[:-1]] == [True] * (len(found) - 1)
    assert [piece.repeats for piece in found] == [False, *[True] * (len(found) - 1)]
    for before, after in itertools.pairwise(found):
        assert before.start + len(before.samples) - after.start == RATE
    assert found[-1].start + len(found[-1].samples) == len(samples)
    assert all(len(piece.samples) <= 10 * RATE for piece in found)


def test_silence_gives_nothing_but_a_short_one_itself():
    assert pieces(silence(100.0)) == []
    assert len(pieces(silence(2.0))) == 1
    assert pieces(np.zeros(0, np.float32)) == []


def test_a_click_is_no_word():
    samples, _ = laid_out([word(0.5, seed=i) for i in range(3)], [1.0] * 4)
    samples[RATE // 2 : RATE // 2 + 40] = 0.9
    assert len(pieces(samples)) == 3


def test_no_more_is_kept_than_a_piece_and_a_half():
    splitter = PauseSplitter(RATE, 30.0)
    most = 0
    for number in range(200):
        for _ in splitter.feed(np.concatenate([word(0.4, seed=number), silence(0.6)])):
            pass
        most = max(most, len(splitter._samples))
    assert most <= 31 * RATE


def test_a_host_that_raises_on_every_floating_point_doubt():
    samples = np.concatenate([word(1.0, level=1e-30), silence(1.0), word(1.0)])
    with np.errstate(all="raise"):
        assert pieces(samples)
