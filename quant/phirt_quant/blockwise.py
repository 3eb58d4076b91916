"""Weights of 4, 6 and 8 bits in blocks along the input dimension, in the layout of MatMulNBits.

A matrix [N, K] becomes codes uint8 [N, blocks, block_size*bits/8] (4 bits: the even element in the low
nibble) and scales [N, blocks]; the value is (code - 2**(bits-1)) * scale, so no zero points are stored.
Blocks that others have made may have minimums beside their scales: their value is code * scale + minimum. K
that is no multiple of `block_size` is padded with zeros.

MatMulNBits multiplies by 2, 4 and 8 bits fast, and by nothing between. So 6 bits lie as two matrices under
one scale, of 4 bits and of 2: the value is (4 * (code - 8) + (low - 2)) * scale. Levels go from -34 to 29.

Knows nothing of graphs or checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from phirt.errors import ConfigError

BITS = (4, 6, 8)
SPLIT_BITS = 6  # stored as 4 and 2
LOW_BITS = 2
# The lowest and the highest level of each number of bits.
_LEVELS = {4: (-8, 7), 6: (-34, 29), 8: (-128, 127)}
# Blocks of 2 bits have fast kernels for these lengths alone.
_SHORTEST_SPLIT_BLOCK, _LONGEST_SPLIT_BLOCK = 32, 128
ScaleType = Literal["float32", "float16"]
# The mean-square search tries these fractions of the largest magnitude as the range of the codes.
_MSE_FRACTIONS = tuple(np.linspace(1.0, 0.7, 13))


@dataclasses.dataclass(frozen=True)
class BlockQuantized:
    """A quantized matrix.

    Attributes:
        codes: uint8 [N, blocks, block_size*bits/8]; of 6 bits, the upper 4.
        scales: float32 or float16 [N, blocks]; may be negative.
        columns: K, without padding.
        bits: 4, 6 or 8.
        block_size: elements that share a scale.
        minimums: the value of code 0, like the scales; None for symmetric blocks.
        low_codes: uint8 [N, blocks, block_size/4], the lower 2 of 6 bits; None for 4 and 8.
    """

    codes: np.ndarray
    scales: np.ndarray
    columns: int
    bits: int
    block_size: int
    minimums: np.ndarray | None = None
    low_codes: np.ndarray | None = None


def check_format(bits: int, block_size: int) -> None:
    """Raise ConfigError unless MatMulNBits takes this combination."""
    if bits not in BITS:
        raise ConfigError(f"{bits} bits cannot be block-quantized; use 4, 6 or 8")
    if block_size != block_within(bits, block_size) or block_size & (block_size - 1):
        to = f"to {_LONGEST_SPLIT_BLOCK} for 6 bits" if bits == SPLIT_BITS else "on, such as 32 or 128"
        raise ConfigError(
            f"block size {block_size} is not accepted; use a power of two from {block_within(bits, 0)} {to}"
        )


def block_within(bits: int, block_size: int) -> int:
    """The nearest block size that so many bits can have."""
    if bits == SPLIT_BITS:
        return min(max(block_size, _SHORTEST_SPLIT_BLOCK), _LONGEST_SPLIT_BLOCK)
    return max(block_size, 16)


def highest_magnitude(bits: int) -> int:
    """How many steps the value of greatest magnitude in a block is from zero."""
    return -_LEVELS[bits][0]


def num_blocks(columns: int, block_size: int) -> int:
    """Blocks in a row of `columns` elements."""
    return -(-columns // block_size)


def rtn_scales(blocks: np.ndarray, bits: int) -> np.ndarray:
    """Scales for rounding to nearest: the signed value of greatest magnitude maps to the lowest code exactly.

    This uses the whole range of the codes, and quantizing dequantized values gives the same values again. Of
    6 bits, whose range is lopsided, the step is larger where values of the other sign would be cut off.

    Args:
        blocks: float32 [..., block_size].

    Returns:
        float32 [...].
    """
    at = np.abs(blocks).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(blocks, at, axis=-1)[..., 0]
    lowest, highest = _LEVELS[bits]
    scales: np.ndarray = extreme / np.float32(lowest)
    if bits != SPLIT_BITS:
        return scales
    other = np.where(extreme > 0, -blocks.min(axis=-1), blocks.max(axis=-1)) / np.float32(highest)
    return np.where(other > np.abs(scales), np.copysign(other, scales), scales)


def mse_scales(blocks: np.ndarray, bits: int, importance: np.ndarray | None = None) -> np.ndarray:
    """Scales of least squared error among fractions of the round-to-nearest scale, of both signs.

    Args:
        blocks: float32 [..., block_size].
        importance: float32 [block_size], weights of the squares; None for equal ones.

    Returns:
        float32 [...].
    """
    base = rtn_scales(blocks, bits)
    best, best_error = base, np.full(base.shape, np.inf, dtype=np.float32)
    for fraction in _MSE_FRACTIONS:
        for sign in (1.0, -1.0):
            scales = base * np.float32(fraction * sign)
            squares = np.square(block_levels(blocks, scales, bits) * scales[..., None] - blocks)
            error = squares.sum(axis=-1) if importance is None else squares @ importance
            better = error < best_error
            best, best_error = np.where(better, scales, best), np.where(better, error, best_error)
    return best


METHODS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"rtn": rtn_scales, "mse": mse_scales}


def quantize(
    matrix: np.ndarray,
    bits: int,
    block_size: int,
    method: str = "rtn",
    scale_type: ScaleType = "float32",
) -> BlockQuantized:
    """Quantize a float matrix [N, K]; memory is a small multiple of the matrix, so pass slabs of rows.

    Raises:
        ConfigError: unsupported format or method, or values that are not finite.
    """
    check_format(bits, block_size)
    if method not in METHODS:
        raise ConfigError(f"quantization method {method!r} is unknown; choose from {', '.join(METHODS)}")
    rows, columns = matrix.shape
    count = num_blocks(columns, block_size)
    padded = np.zeros((rows, count * block_size), dtype=np.float32)
    padded[:, :columns] = matrix
    if not np.isfinite(padded).all():
        raise ConfigError("the weights hold values that are not finite; the checkpoint is damaged")
    blocks = padded.reshape(rows, count, block_size)
    scales = stored_scales(METHODS[method](blocks, bits), scale_type)
    levels = block_levels(blocks, scales.astype(np.float32), bits).reshape(rows, -1)[:, :columns]
    return from_levels(levels, scales, bits, block_size)


def stored_scales(scales: np.ndarray, scale_type: ScaleType) -> np.ndarray:
    """The nearest scales that can be stored.

    Raises:
        ConfigError: float16 does not reach them.
    """
    greatest = np.finfo(scale_type).max
    if scale_type == "float16" and (np.abs(scales) > greatest).any():
        raise ConfigError(
            f"a block of weights needs a scale of {np.abs(scales).max():.2g}, which float16 does not reach; "
            "the checkpoint is damaged, or needs --bits 32"
        )
    stored: np.ndarray = scales.astype(scale_type)
    return stored


def from_levels(levels: np.ndarray, scales: np.ndarray, bits: int, block_size: int) -> BlockQuantized:
    """The stored form of whole-number levels [N, K] under scales [N, blocks] as they are stored."""
    rows, columns = levels.shape
    padded = np.zeros((rows, scales.shape[1] * block_size), dtype=np.int16)
    padded[:, :columns] = levels
    blocks = padded.reshape(rows, -1, block_size)
    if bits != SPLIT_BITS:
        packed = pack((blocks + 2 ** (bits - 1)).astype(np.uint8), bits)
        return BlockQuantized(packed, scales, columns, bits, block_size)
    upper, lower = np.divmod(blocks - _LEVELS[bits][0], 2**LOW_BITS)
    codes, low_codes = pack(upper.astype(np.uint8), 4), pack(lower.astype(np.uint8), LOW_BITS)
    return BlockQuantized(codes, scales, columns, bits, block_size, low_codes=low_codes)


def dequantize(quantized: BlockQuantized) -> np.ndarray:
    """The float32 matrix [N, K] that the codes stand for."""
    bits = quantized.bits
    scales = quantized.scales.astype(np.float32)[..., None]
    codes = _unpack(quantized.codes, stored_bits(bits)[0]).astype(np.float32)
    values: np.ndarray
    if quantized.low_codes is not None:
        low = _unpack(quantized.low_codes, LOW_BITS).astype(np.float32)
        values = (codes * 2**LOW_BITS + low + np.float32(_LEVELS[bits][0])) * scales
    elif quantized.minimums is None:
        values = (codes - np.float32(2 ** (bits - 1))) * scales
    else:
        values = codes * scales + quantized.minimums.astype(np.float32)[..., None]
    return values.reshape(values.shape[0], -1)[:, : quantized.columns]


def block_levels(blocks: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Whole-number levels nearest to `blocks` [..., block_size] under `scales` [...]; a zero scale gives
    zeros.
    """
    lowest, highest = _LEVELS[bits]
    # Values below the normal range make a reciprocal overflow; dividing keeps their levels right.
    safe = np.where(scales == 0, scales.dtype.type(1), scales)[..., None]
    levels: np.ndarray = np.clip(np.rint(blocks / safe), lowest, highest) * (scales != 0)[..., None]
    return levels


def stored_bits(bits: int) -> tuple[int, ...]:
    """How many bits the codes of each matrix have that such a one lies as."""
    return (4, LOW_BITS) if bits == SPLIT_BITS else (bits,)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [..., block_size] of 2, 4 or 8 bits as they are stored: several share a byte, the first
    in its lowest bits.
    """
    count = 8 // bits
    packed = codes[..., 0::count].copy()
    for place in range(1, count):
        packed |= codes[..., place::count] << (bits * place)
    return packed


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    count, mask = 8 // bits, 2**bits - 1
    parts = [(packed >> (bits * place)) & mask for place in range(count)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)
