"""int4 and int8 weights in blocks along the input dimension, in the layout of MatMulNBits.

A matrix [N, K] becomes codes uint8 [N, blocks, block_size*bits/8] (4 bits: the even element in the low
nibble) and scales [N, blocks]; the value is (code - 2**(bits-1)) * scale, so no zero points are stored.
Blocks that others have made may have minimums beside their scales: their value is code * scale + minimum. K
that is no multiple of `block_size` is padded with zeros. Knows nothing of graphs or checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from phirt.errors import ConfigError

BITS = (4, 8)
# The mean-square search tries these fractions of the largest magnitude as the range of the codes.
_MSE_FRACTIONS = tuple(np.linspace(1.0, 0.7, 13))


@dataclasses.dataclass(frozen=True)
class BlockQuantized:
    """A quantized matrix.

    Attributes:
        codes: uint8 [N, blocks, block_size*bits/8].
        scales: float32 or float16 [N, blocks]; may be negative.
        columns: K, without padding.
        bits: 4 or 8.
        block_size: elements that share a scale.
        minimums: the value of code 0, like the scales; None for symmetric blocks.
    """

    codes: np.ndarray
    scales: np.ndarray
    columns: int
    bits: int
    block_size: int
    minimums: np.ndarray | None = None


def check_format(bits: int, block_size: int) -> None:
    """Raise ConfigError unless MatMulNBits takes this combination."""
    if bits not in BITS:
        raise ConfigError(f"{bits} bits cannot be block-quantized; use 4 or 8")
    if block_size < 16 or block_size & (block_size - 1):
        raise ConfigError(
            f"block size {block_size} is not accepted; use a power of two from 16 on, such as 32 or 128"
        )


def num_blocks(columns: int, block_size: int) -> int:
    """Blocks in a row of `columns` elements."""
    return -(-columns // block_size)


def rtn_scales(blocks: np.ndarray, bits: int) -> np.ndarray:
    """Scales for rounding to nearest: the signed value of greatest magnitude maps to the lowest code exactly.

    With codes from -2**(bits-1) to 2**(bits-1)-1 this uses the whole range, and quantizing dequantized values
    gives the same codes and scales again.

    Args:
        blocks: float32 [..., block_size].

    Returns:
        float32 [...].
    """
    at = np.abs(blocks).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(blocks, at, axis=-1)[..., 0]
    return extreme / np.float32(-(2 ** (bits - 1)))


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


def quantize(matrix: np.ndarray, bits: int, block_size: int, method: str = "rtn") -> BlockQuantized:
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
    scales = METHODS[method](blocks, bits).astype(np.float32)
    return from_levels(
        block_levels(blocks, scales, bits).reshape(rows, -1)[:, :columns], scales, bits, block_size
    )


def from_levels(levels: np.ndarray, scales: np.ndarray, bits: int, block_size: int) -> BlockQuantized:
    """The stored form of whole-number levels [N, K], from -2**(bits-1) on, under scales float32
    [N, blocks].
    """
    rows, columns = levels.shape
    codes = np.full((rows, scales.shape[1] * block_size), 2 ** (bits - 1), dtype=np.uint8)
    codes[:, :columns] = levels + 2 ** (bits - 1)
    packed = pack(codes.reshape(rows, -1, block_size), bits)
    return BlockQuantized(packed, scales, columns, bits, block_size)


def dequantize(quantized: BlockQuantized) -> np.ndarray:
    """The float32 matrix [N, K] that the codes stand for."""
    bits = quantized.bits
    scales = quantized.scales.astype(np.float32)[..., None]
    codes = _unpack(quantized.codes, bits).astype(np.float32)
    values: np.ndarray
    if quantized.minimums is None:
        values = (codes - np.float32(2 ** (bits - 1))) * scales
    else:
        values = codes * scales + quantized.minimums.astype(np.float32)[..., None]
    return values.reshape(values.shape[0], -1)[:, : quantized.columns]


def block_levels(blocks: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Whole-number levels nearest to `blocks` [..., block_size] under `scales` [...]; a zero scale gives
    zeros.
    """
    half = 2 ** (bits - 1)
    # Values below the normal range make a reciprocal overflow; dividing keeps their levels right.
    safe = np.where(scales == 0, scales.dtype.type(1), scales)[..., None]
    levels: np.ndarray = np.clip(np.rint(blocks / safe), -half, half - 1) * (scales != 0)[..., None]
    return levels


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [..., block_size] as they are stored: of 4 bits, two share a byte."""
    return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
