"""Samples that a caller holds as arrays, and any number of channels made one.

Knows arrays. Knows nothing of files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.encoders.formats.sound import Block
from phirt.errors import MediaError

SampleSource = tuple[npt.NDArray[Any], int]
"""Samples and their rate in Hz: float in -1 to 1, or int16 or int32; [n] or [n, channels]."""

_ACCEPTED = "float32 or float64 in -1 to 1, int16 or int32, of the shape [n] or [n, channels]"
_NUMBER = int | float | np.integer | np.floating
_MOST_CHANNELS = 64
_LOUDEST = 16.0  # floats beyond this are integers that were converted and not scaled
_CANCELLED = 0.1  # of the energy that channels which have nothing in common would leave in their average


def from_arrays(source: object) -> tuple[Block, int]:
    """float32 [n, channels] and the rate. Takes (rate, samples) too, as other libraries give it.

    Raises MediaError for what cannot be meant.
    """
    if not isinstance(source, tuple) or len(source) != 2:
        raise MediaError("audio: samples need their rate; give a pair: (samples, 16000)")
    samples, rate = source
    if isinstance(samples, _NUMBER):
        samples, rate = rate, samples  # a pair in the other order
    if isinstance(rate, bool) or not isinstance(rate, _NUMBER) or not 0 < rate < 1 << 31 or rate % 1:
        raise MediaError(f"audio: the rate is {rate!r}, accepted: a whole number of samples a second")
    return _scaled(np.asarray(samples)), int(rate)


def _scaled(samples: npt.NDArray[Any]) -> Block:
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2:
        raise MediaError(f"audio: the samples have {samples.ndim} dimensions, accepted: {_ACCEPTED}")
    if samples.shape[1] > _MOST_CHANNELS >= samples.shape[0] > 0:
        raise MediaError(
            f"audio: samples of the shape {samples.shape} look like [channels, n], accepted: [n, channels]; "
            "give samples.T"
        )
    if samples.dtype.kind == "f" and samples.dtype.itemsize >= 2:
        with np.errstate(all="ignore"):
            block = samples.astype(np.float32)
            loudest = float(np.abs(block).max(initial=0.0, where=np.isfinite(block)))
        if loudest > _LOUDEST:
            raise MediaError(
                f"audio: float samples reach {loudest:g}, accepted: -1 to 1; divide them by their "
                "full scale, or give int16"
            )
        return block
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / np.float32(1 << (8 * samples.dtype.itemsize - 1))
    raise MediaError(f"audio: samples are {samples.dtype}, accepted: {_ACCEPTED}")


class MonoMix:
    """Makes one channel of any number, block by block.

    The average; but where the channels cancel each other (a microphone wired the wrong way round gives L =
    -R) the loudest channel. Which one that is stays, while it is heard.
    """

    def __init__(self) -> None:
        self._chosen: int | None = None

    def __call__(self, block: Block) -> npt.NDArray[np.float32]:
        """float32 [n] from float32 [n, channels]."""
        channels = block.shape[1]
        if channels == 1:
            return block[:, 0]
        with np.errstate(all="ignore"):
            average: npt.NDArray[np.float32] = block.mean(axis=1, dtype=np.float32)
            energies = np.einsum("nc,nc->c", block, block, dtype=np.float64)
            left = float(np.einsum("n,n->", average, average, dtype=np.float64))
            if not left < _CANCELLED * float(energies.sum()) / channels**2:  # also where it is no number
                return average
        loudest = int(energies.argmax())
        if (
            self._chosen is None
            or self._chosen >= channels
            or energies[self._chosen] < 0.25 * energies[loudest]
        ):
            self._chosen = loudest
        return np.ascontiguousarray(block[:, self._chosen])
