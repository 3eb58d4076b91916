"""GPTQ, AWQ and compressed-tensors: integer codes with a scale and a zero point for each group.

Knows how each packs a matrix [N, K] into 32-bit words, from public descriptions of the formats: AutoGPTQ's
and GPT-QModel's (words along K, zero points along N, stored one too low but for `gptq_v2`), AutoAWQ's `gemm`
(words along N, in the order 0 2 4 6 1 3 5 7), compressed-tensors' `pack-quantized` (words along K of rows).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from phirt.bundle.tensor_file import StoredTensor
from phirt_export.packed.arrays import Array, Codes, array, floats, unpacked
from phirt_export.packed.matrices import PackedMatrix

_ACCEPTED_BITS = (4, 8)
# Of eight codes in an AWQ word, from the lowest bits on, the columns that they belong to.
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


@dataclasses.dataclass(frozen=True)
class _Gptq:
    words: Array
    zero_words: Array
    steps: npt.NDArray[np.floating]
    bits: int
    too_low: int

    def codes(self, start: int, stop: int) -> Codes:
        return unpacked(np.ascontiguousarray(self.words[:, start:stop].T), self.bits)

    def scales(self, start: int, stop: int) -> npt.NDArray[np.floating]:
        return self.steps[:, start:stop].T

    def zeros(self, start: int, stop: int) -> Array:
        each = 32 // self.bits
        first = start // each
        found = unpacked(self.zero_words[:, first : -(-stop // each)], self.bits).astype(np.int32)
        return found[:, start - first * each : stop - first * each].T + self.too_low


@dataclasses.dataclass(frozen=True)
class _Awq:
    words: Array
    zero_words: Array
    steps: npt.NDArray[np.floating]

    def codes(self, start: int, stop: int) -> Codes:
        return np.ascontiguousarray(_awq_columns(self.words, start, stop).T)

    def scales(self, start: int, stop: int) -> npt.NDArray[np.floating]:
        return self.steps[:, start:stop].T

    def zeros(self, start: int, stop: int) -> Array:
        return _awq_columns(self.zero_words, start, stop).T.astype(np.int32)


def _awq_columns(words: Array, start: int, stop: int) -> Codes:
    first = start // 8
    codes = unpacked(words[:, first : -(-stop // 8), None], 4)[..., np.argsort(_AWQ_ORDER)]
    return codes.reshape(words.shape[0], -1)[:, start - 8 * first : stop - 8 * first]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Codes row by row, packed in words or, of 8 bits with a sign, one by one."""

    stored: Array
    zero_points: Array | int
    steps: npt.NDArray[np.floating]
    bits: int
    columns: int

    def codes(self, start: int, stop: int) -> Codes:
        if self.stored.dtype == np.uint8:
            return self.stored[start:stop] ^ np.uint8(0x80)
        return np.ascontiguousarray(unpacked(self.stored[start:stop], self.bits)[:, : self.columns])

    def scales(self, start: int, stop: int) -> npt.NDArray[np.floating]:
        return self.steps[start:stop]

    def zeros(self, start: int, stop: int) -> Array:
        if isinstance(self.zero_points, int):
            return np.array(self.zero_points)
        return self.zero_points[start:stop]


def gptq(of: Mapping[str, StoredTensor], bits: int, second_version: bool) -> PackedMatrix:
    """A matrix of `qweight`, `qzeros`, `scales` and, where there is one, `g_idx`. Raises ValueError."""
    words, zero_words, steps = _words(of["qweight"]), _words(of["qzeros"]), _steps(of["scales"])
    order = array(of["g_idx"]).astype(np.int64) if "g_idx" in of else None
    order = order if order is not None and order.size else None
    if order is not None:
        bits = 32 * words.shape[0] // order.size  # modules of one checkpoint may differ
    _require_bits(bits)
    columns, rows, groups = words.shape[0] * 32 // bits, words.shape[1], steps.shape[0]
    _require(zero_words.shape, (groups, -(-rows * bits // 32)), "qzeros")
    _require(steps.shape, (groups, rows), "scales")
    order = _proper_order(order, columns, groups, "g_idx")
    source = _Gptq(words, zero_words, steps, bits, 0 if second_version else 1)
    kind = f"{'' if order is None else 'act-order '}GPTQ in {bits} bits"
    return PackedMatrix(kind, (rows, columns), bits, groups, source, order)


def awq(of: Mapping[str, StoredTensor]) -> PackedMatrix:
    """A matrix of `qweight`, `qzeros` and `scales` in AWQ's order of 4-bit codes. Raises ValueError."""
    words, zero_words, steps = _words(of["qweight"]), _words(of["qzeros"]), _steps(of["scales"])
    columns, rows, groups = words.shape[0], words.shape[1] * 8, steps.shape[0]
    _require(zero_words.shape, (groups, words.shape[1]), "qzeros")
    _require(steps.shape, (groups, rows), "scales")
    return PackedMatrix("AWQ in 4 bits", (rows, columns), 4, groups, _Awq(words, zero_words, steps))


def packed_rows(of: Mapping[str, StoredTensor]) -> PackedMatrix:
    """A matrix of `weight_packed`, `weight_scale`, `weight_shape` and what goes with them. Raises
    ValueError.
    """
    words, steps = _words(of["weight_packed"]), floats(of["weight_scale"])
    rows, columns = (int(size) for size in array(of["weight_shape"]))
    if words.shape[0] != rows or columns < 1 or not steps.size or steps.size % rows:
        raise ValueError(f"codes of {list(words.shape)} and scales of {list(steps.shape)}")
    bits = next((bits for bits in _ACCEPTED_BITS if -(-columns * bits // 32) == words.shape[1]), 0)
    _require_bits(bits)
    steps = steps.reshape(rows, -1)
    groups = steps.shape[1]
    zero_points: Array | int = 2 ** (bits - 1)
    if "weight_zero_point" in of:
        zero_points = _zero_points(array(of["weight_zero_point"]), rows, groups, bits)
    order = array(of["weight_g_idx"]).astype(np.int64) if "weight_g_idx" in of else None
    if order is not None and (order == -1).all():  # as it begins, before an order was found
        order = None
    order = _proper_order(order, columns, groups, "weight_g_idx")
    source = _Rows(words, zero_points, steps, bits, columns)
    return PackedMatrix(f"packed in {bits} bits", (rows, columns), bits, groups, source, order)


def int8_rows(of: Mapping[str, StoredTensor], steps: npt.NDArray[np.floating], kind: str) -> PackedMatrix:
    """A matrix of `weight` in int8, whose rows or groups have these scales. Raises ValueError."""
    stored = array(of["weight"])
    rows, columns = stored.shape
    steps = np.broadcast_to(steps.reshape(-1, 1), (rows, 1)) if steps.size in (1, rows) else steps
    _require(steps.shape[:1], (rows,), "scales")
    if "weight_zero_point" in of:
        raise ValueError("int8 weights with zero points")
    return PackedMatrix(kind, (rows, columns), 8, steps.shape[1], _Rows(stored, 128, steps, 8, columns))


def _zero_points(stored: Array, rows: int, groups: int, bits: int) -> Array:
    """Packed along the rows, or, by older versions, one by one in int8."""
    if stored.dtype == np.uint8:
        signed = (stored.reshape(rows, groups) ^ np.uint8(0x80)).astype(np.int32)
        return np.asarray(signed - (128 - 2 ** (bits - 1)))
    _require(stored.shape, (-(-rows * bits // 32), groups), "weight_zero_point")
    return unpacked(np.ascontiguousarray(stored.T), bits)[:, :rows].T.astype(np.int32)


def _proper_order(
    order: npt.NDArray[np.int64] | None, columns: int, groups: int, what: str
) -> npt.NDArray[np.int64] | None:
    """The group of each column; None where columns of one group follow each other."""
    if order is None:
        return None
    _require(order.shape, (columns,), what)
    if order.min() < 0 or order.max() >= groups:
        raise ValueError(f"a {what} that names no group")
    return None if (order == np.arange(columns) // -(-columns // groups)).all() else order


def _words(tensor: StoredTensor) -> Array:
    found = array(tensor)
    if found.dtype != np.uint32 or found.ndim != 2 or not found.size:
        raise ValueError(f"codes of type {tensor.dtype[:20]} {list(found.shape)}; 32-bit words are read")
    return found


def _steps(tensor: StoredTensor) -> npt.NDArray[np.floating]:
    found = floats(tensor)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"scales of {list(found.shape)}")
    return found


def _require(found: tuple[int, ...], wanted: tuple[int, ...], what: str) -> None:
    if found != wanted:
        raise ValueError(f"{what} of {list(found)}, not {list(wanted)}")


def _require_bits(bits: int) -> None:
    if bits not in _ACCEPTED_BITS:
        raise ValueError(f"codes of {bits} bits; 4 and 8 are read")
