"""A matrix of codes in groups, whoever has packed it: read as float32, or with its codes as they are.

Knows the arithmetic (code - zero) * scale and which blocks of onnxruntime's operators hold it. Knows nothing
of files. Kept codes are the stored ones, bit for bit; what a zero point makes of its group is a minimum.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from phirt.bundle.tensor_file import Values
from phirt.errors import ConfigError
from phirt_export.packed.arrays import Array, Codes
from phirt_quant.blockwise import BlockQuantized, pack

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256
_USUAL_BLOCK = 128  # where one scale is for a whole row
# What cannot keep its codes is held by 8 bits and spoiled by 4.
_HELD_BY = 8.0


class Groups(Protocol):
    """Codes and what they mean, of rows start..stop-1."""

    def codes(self, start: int, stop: int) -> Codes:
        """uint8 [rows, columns]."""

    def scales(self, start: int, stop: int) -> npt.NDArray[np.floating]:
        """Floats [rows, groups]."""

    def zeros(self, start: int, stop: int) -> Array:
        """The codes that stand for 0, [rows, groups] or one for all."""


@dataclasses.dataclass(frozen=True)
class KeptForm:
    """See `kept.KeptForm`."""

    bits: int
    block_size: int
    has_minimums: bool
    scale_type: str


@dataclasses.dataclass(frozen=True)
class PackedMatrix:
    """Codes of `code_bits` in groups along a row, one behind the other; or, where `order` is given, column k
    belongs to the group order[k], which no operator takes.
    """

    kind: str
    shape: tuple[int, int]
    code_bits: int
    num_groups: int
    source: Groups
    order: npt.NDArray[np.int64] | None = None
    dtype: str = "F32"

    @property
    def bits(self) -> float:
        """Bits that an element takes."""
        return self.code_bits if self.kept_type is not None else _HELD_BY

    @functools.cached_property
    def kept_type(self) -> KeptForm | None:
        """How its codes can be kept."""
        rows, columns = self.shape
        if self.order is not None or columns % self.num_groups:
            return None
        group = columns // self.num_groups
        block = group & -group  # the largest power of two that divides it
        block = min(block, _LARGEST_BLOCK if block == group and group <= _LARGEST_BLOCK else _USUAL_BLOCK)
        if block < _SMALLEST_BLOCK:
            return None
        symmetric = bool((self.source.zeros(0, rows) == 2 ** (self.code_bits - 1)).all())
        half = self.source.scales(0, 1).dtype == np.float16
        # zero * scale takes more digits than float16 has.
        return KeptForm(self.code_bits, block, not symmetric, "float16" if symmetric and half else "float32")

    def rows(self, start: int, stop: int) -> Values:
        """Rows start..stop-1 along the first axis, float32."""
        scales = self.source.scales(start, stop).astype(np.float32)
        zeros = np.broadcast_to(self.source.zeros(start, stop), scales.shape).astype(np.float32)
        group = -(-self.shape[1] // self.num_groups)
        places = np.arange(self.shape[1]) // group if self.order is None else self.order
        values = (self.source.codes(start, stop).astype(np.float32) - zeros[:, places]) * scales[:, places]
        return values

    def tensor(self) -> Values:
        """All of it."""
        return self.rows(0, self.shape[0])

    def kept_rows(self, start: int, stop: int, bits: int, has_minimums: bool, dtype: str) -> BlockQuantized:
        """The codes of rows start..stop-1, in `bits`, which may be more than they need.

        Raises:
            ConfigError: a scale is not finite.
        """
        form = self.kept_type
        assert form is not None and bits >= form.bits and has_minimums >= form.has_minimums
        scales = self.source.scales(start, stop).astype(dtype)
        if not np.isfinite(scales).all():
            raise ConfigError("the weights hold scales that are not finite; the checkpoint is damaged")
        zeros = np.broadcast_to(self.source.zeros(start, stop), scales.shape)
        codes, minimums = self.source.codes(start, stop), None
        times = self.shape[1] // self.num_groups // form.block_size
        if has_minimums:
            minimums = np.repeat(scales * -zeros.astype(dtype), times, axis=1)
        else:
            codes = codes + np.uint8(2 ** (bits - 1) - 2 ** (form.bits - 1))
        blocks = codes.reshape(stop - start, -1, form.block_size)
        whole = np.repeat(scales, times, axis=1)
        return BlockQuantized(pack(blocks, bits), whole, self.shape[1], bits, form.block_size, minimums)


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """A matrix whose codes no operator holds: read as float32."""

    kind: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Values]
    dtype: str = "F32"
    kept_type: None = None
    bits: float = _HELD_BY

    def rows(self, start: int, stop: int) -> Values:
        """Rows start..stop-1 along the first axis."""
        return self.read(start, stop)

    def tensor(self) -> Values:
        """All of it."""
        return self.read(0, self.shape[0])

    def kept_rows(self, start: int, stop: int, bits: int, has_minimums: bool, dtype: str) -> BlockQuantized:
        """Never asked for: nothing is kept."""
        raise AssertionError("codes that no operator holds are not kept")
