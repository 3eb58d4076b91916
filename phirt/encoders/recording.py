"""Recordings as log-mel kinds take them: mono samples at one of the kind's rates, and a key of the content.

Knows soxr. Knows nothing of containers, which are `audio_file`'s matter, or of spectra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import soxr

from phirt.bundle.manifest import Limits
from phirt.encoders.audio_file import AudioSource, Samples, check_samples, read_clip
from phirt.runtime.native_calls import native_calls


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """Mono samples float32 [n] and their rate in Hz; a name for messages, a key that names the content."""

    samples: Samples
    rate: int
    name: str
    key: str


def open_recording(source: AudioSource, limits: Limits, rates: Sequence[int]) -> Recording:
    """Decodes a recording; one whose rate is not among `rates` is resampled to the first of them.

    Raises MediaError for what cannot be read, is damaged, silent or longer than the limit.
    """
    clip = read_clip(source, limits)
    samples, rate = clip.samples, clip.rate
    check_samples(samples, clip.name)
    if rate not in rates:
        with native_calls:
            resampled = soxr.resample(samples, rate, rates[0], quality="HQ")
        samples = np.asarray(resampled, dtype=np.float32)
        rate = rates[0]
    return Recording(samples, rate, clip.name, clip.key)
