"""Recordings changed at random as waveforms, for towers whose frames are computed once.

Knows samples at 16 kHz. Knows nothing of files, frames or models. Of the changes that `AudioAugmentation`
has, those of frames alone (vocal tract, masks) do not apply.
"""

from __future__ import annotations

import numpy as np
import soxr

from phirt.encoders.audio_file import Samples
from phirt_train.data.augmentation import AudioAugmentation

_RATE, _NARROW = 16000, 8000
_FRAME = 160  # samples of 10 ms
_QUIETEST, _LOUDEST = 5.0, 35.0  # decibels of the recording over the noise
_PEAK = 0.99


def augment_samples(samples: Samples, change: AudioAugmentation, rng: np.random.Generator) -> Samples:
    """Samples spoken faster or slower (and higher or lower), louder, through a telephone, in noise, cut at
    the ends, as `change` allows.
    """
    x = np.asarray(samples, np.float32)
    if change.edge_frames:
        x = _moved_edges(x, change.edge_frames * _FRAME, rng)
    if change.speed:
        x = soxr.resample(x, _RATE, _RATE * float(np.exp(rng.uniform(-change.speed, change.speed))), "MQ")
    if rng.random() < change.narrowband:
        x = soxr.resample(soxr.resample(x, _RATE, _NARROW, "MQ"), _NARROW, _RATE, "MQ")
    if rng.random() < change.noise:
        level = float(np.sqrt(np.mean(x * x))) * 10 ** (-rng.uniform(_QUIETEST, _LOUDEST) / 20)
        x = x + level * rng.standard_normal(len(x)).astype(np.float32)
    if change.gain:  # in nepers of power
        x = x * np.float32(np.exp(rng.normal(0, change.gain) / 2))
    loudest = float(np.abs(x).max())
    return np.asarray(x * (_PEAK / loudest) if loudest > _PEAK else x, np.float32)


def _moved_edges(x: Samples, most: int, rng: np.random.Generator) -> Samples:
    """Up to `most` samples less or, silent ones, more at each end; at most an eighth is cut."""
    begin, end = rng.integers(-most, most + 1, 2)
    cut = len(x) // 8
    kept = x[min(max(begin, 0), cut) : len(x) - min(max(end, 0), cut)]
    return np.concatenate((np.zeros(max(-begin, 0), np.float32), kept, np.zeros(max(-end, 0), np.float32)))
