"""Samples that lie in a file as they are: integers, floats, A-law and µ-law, of either byte order.

Knows encodings of single samples. Knows no container.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from phirt.encoders.formats.sound import BLOCK, Block, DamagedError, read_at

Encoding = Literal["signed", "unsigned", "float", "alaw", "ulaw"]

_WIDTHS: dict[Encoding, tuple[int, ...]] = {
    "signed": (1, 2, 3, 4),
    "unsigned": (1,),
    "float": (4, 8),
    "alaw": (1,),
    "ulaw": (1,),
}


@dataclasses.dataclass(frozen=True)
class Pcm:
    """`size` bytes of samples from `offset` on, `width` bytes each, the channels interleaved."""

    rate: int
    channels: int
    encoding: Encoding
    width: int
    big_endian: bool
    offset: int
    size: int

    @property
    def known(self) -> bool:
        """Whether samples of this encoding and width exist."""
        return self.width in _WIDTHS[self.encoding]

    @property
    def frames(self) -> int:
        """Whole samples a channel; a rest of less is left out."""
        return self.size // (self.width * self.channels)

    def blocks(self, stream: BinaryIO) -> Iterator[Block]:
        """The samples in order."""
        at_once, done = BLOCK // self.channels + 1, 0
        step = self.width * self.channels
        while done < self.frames:
            count = min(at_once, self.frames - done)
            data = read_at(stream, self.offset + done * step, count * step)
            if len(data) < count * step:
                raise DamagedError(f"ended while it was read, at sample {done} of {self.frames}")
            yield self._decoded(data).reshape(count, self.channels)
            done += count

    def _decoded(self, data: bytes) -> npt.NDArray[np.float32]:
        order = ">" if self.big_endian else "<"
        if self.encoding in ("alaw", "ulaw"):
            table = _alaw() if self.encoding == "alaw" else _ulaw()
            return table[np.frombuffer(data, np.uint8)]
        if self.encoding == "unsigned":
            return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
        if self.encoding == "float":
            with np.errstate(all="ignore"):  # what overflows float32 becomes infinite, and is refused later
                return np.frombuffer(data, f"{order}f{self.width}").astype(np.float32)
        if self.width == 3:
            return _of_24_bits(data, order)
        scale = np.float32(1 << (8 * self.width - 1))
        return np.frombuffer(data, f"{order}i{self.width}").astype(np.float32) / scale


def _of_24_bits(data: bytes, order: str) -> npt.NDArray[np.float32]:
    """Three bytes are widened to four, the new one the lowest."""
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, slice(1, 4) if order == "<" else slice(0, 3)] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    values: npt.NDArray[Any] = wide.view(f"{order}i4")[:, 0]
    return values.astype(np.float32) / np.float32(1 << 31)


@lru_cache(maxsize=1)
def _ulaw() -> npt.NDArray[np.float32]:
    """µ-law of ITU-T G.711: 3 bits of exponent and 4 of mantissa, all bits inverted."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = (((mantissa << 3) + 132) << exponent) - 132
    return (np.where(code & 128, -size, size) / 32768).astype(np.float32)


@lru_cache(maxsize=1)
def _alaw() -> npt.NDArray[np.float32]:
    """A-law of ITU-T G.711: as µ-law, with every second bit inverted and a linear piece near zero."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = np.where(
        exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0)
    )
    return (np.where(code & 128, size, -size) / 32768).astype(np.float32)
