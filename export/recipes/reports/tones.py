"""Made sounds that are no speech: tones that rise, fall, follow one another or are counted.

Knows samples and what is true of them. Knows nothing of files or models.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ..nano.questions import NUMBERS

RATE = 16000
_MOST_BEEPS = 6
_EDGE = 0.01  # seconds in which a tone swells and fades, so that it does not click


@dataclasses.dataclass(frozen=True)
class Sound:
    """Samples at 16 kHz, a question and its answer."""

    samples: NDArray[np.float32]
    question: str
    answer: str


def draw_tones(rng: np.random.Generator) -> Sound:
    """One of the kinds, in a little noise."""
    kinds = (_beeps, _glide, _pair, _pace)
    sound = kinds[int(rng.integers(len(kinds)))](rng)
    noise = rng.normal(0, rng.uniform(0.0005, 0.005), len(sound.samples))
    return dataclasses.replace(sound, samples=(sound.samples + noise).astype(np.float32))


def _tone(begin: float, end: float, seconds: float, level: float = 0.3) -> NDArray[np.float32]:
    """A sine whose pitch runs from `begin` to `end` hertz, as ears hear it: evenly in octaves."""
    count = int(seconds * RATE)
    pitch = np.geomspace(begin, end, count)
    edge = np.minimum(1.0, np.minimum(np.arange(count), np.arange(count)[::-1]) / (_EDGE * RATE))
    sine: NDArray[np.float64] = level * edge * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
    return sine.astype(np.float32)


def _silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * RATE), np.float32)


def _beeps(rng: np.random.Generator) -> Sound:
    count, pitch = int(rng.integers(1, _MOST_BEEPS + 1)), float(rng.uniform(300, 1500))
    parts = [_silence(0.1)]
    for _ in range(count):
        parts += [_tone(pitch, pitch, 0.12), _silence(float(rng.uniform(0.12, 0.25)))]
    return Sound(np.concatenate(parts), "How many beeps do you hear?", NUMBERS[count])


def _glide(rng: np.random.Generator) -> Sound:
    low = float(rng.uniform(250, 600))
    high, rises = low * float(rng.uniform(1.6, 3.0)), bool(rng.random() < 0.5)
    begin, end = (low, high) if rises else (high, low)
    tone = _tone(begin, end, float(rng.uniform(0.5, 1.0)))
    samples = np.concatenate([_silence(0.1), tone, _silence(0.1)])
    return Sound(samples, "Does the tone rise or fall?", "it rises" if rises else "it falls")


def _pair(rng: np.random.Generator) -> Sound:
    low = float(rng.uniform(250, 700))
    pair, is_first = [low * float(rng.uniform(1.5, 2.5)), low], bool(rng.random() < 0.5)
    ordered = pair if is_first else pair[::-1]
    first, second = (_tone(pitch, pitch, 0.3) for pitch in ordered)
    samples = np.concatenate([_silence(0.1), first, _silence(0.2), second, _silence(0.1)])
    return Sound(samples, "Which tone is higher?", "the first" if is_first else "the second")


def _pace(rng: np.random.Generator) -> Sound:
    is_fast, pitch = bool(rng.random() < 0.5), float(rng.uniform(300, 1500))
    gap = float(rng.uniform(0.05, 0.1) if is_fast else rng.uniform(0.4, 0.5))
    parts = [_silence(0.1), *[part for _ in range(4) for part in (_tone(pitch, pitch, 0.08), _silence(gap))]]
    return Sound(np.concatenate(parts), "Are the beeps fast or slow?", "fast" if is_fast else "slow")
