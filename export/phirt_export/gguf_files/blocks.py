"""GGUF's block types: as float32, and, where onnxruntime's operators hold them, as the codes that they are.

Knows bytes of blocks (ggml's `block_q4_0` and its kin: https://github.com/ggml-org/ggml/blob/master/src/
ggml-common.h). Knows nothing of files or tensors. Scales of Q4_K are numbers of 6
bits times a float16 that eight blocks share; the product, exact in float32, is what is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize as gguf_dequantize

Bytes = npt.NDArray[np.uint8]

PLAIN = (Kind.F32, Kind.F16, Kind.BF16, Kind.F64)
# What the library gives back as float32.
_DEQUANTIZED = (
    Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K,
    Kind.Q6_K, Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S,
    Kind.IQ4_NL, Kind.IQ4_XS, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4,
)  # fmt: skip
READ = (*PLAIN, *_DEQUANTIZED)


@dataclasses.dataclass(frozen=True)
class Levels:
    """Blocks as numbers: `levels` uint8 [..., blocks, block_size]; a value is (level - zero) * scale, or
    level * scale + minimum where there are minimums.
    """

    levels: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.floating]
    minimums: npt.NDArray[np.floating] | None = None


@dataclasses.dataclass(frozen=True)
class KeptType:
    """How a block type is kept: `bits` of its codes, elements that share a scale, whether there are minimums,
    the scales' type, and the level that stands for 0 where there are none.
    """

    bits: int
    block_size: int
    has_minimums: bool
    scale_type: str
    zero: int
    unpack: Callable[[Bytes], Levels]


def to_float(raw: Bytes, kind: Kind) -> npt.NDArray[np.float32]:
    """Rows of bytes uint8 [n, bytes] as float32 [n, elements]."""
    if kind == Kind.F64:
        with np.errstate(over="ignore"):
            return raw.view("<f8").astype(np.float32)
    if kind == Kind.F32:
        return raw.view("<f4").astype(np.float32)
    values: npt.NDArray[np.float32] = gguf_dequantize(raw, kind)
    return values


def _halves(raw: Bytes) -> npt.NDArray[np.floating]:
    """Two bytes each as float16 [...]."""
    halves: npt.NDArray[np.floating] = np.ascontiguousarray(raw).view("<f2")[..., 0]
    return halves


def _nibbles(raw: Bytes) -> npt.NDArray[np.uint8]:
    """First all low nibbles, then all high ones."""
    return np.concatenate([raw & 0x0F, raw >> 4], axis=-1)


def _q4_0(raw: Bytes) -> Levels:
    return Levels(_nibbles(raw[..., 2:]), _halves(raw[..., :2]))


def _q4_1(raw: Bytes) -> Levels:
    return Levels(_nibbles(raw[..., 4:]), _halves(raw[..., :2]), _halves(raw[..., 2:4]))


def _q8_0(raw: Bytes) -> Levels:
    return Levels(raw[..., 2:] ^ np.uint8(0x80), _halves(raw[..., :2]))


def _q4_k(raw: Bytes) -> Levels:
    """Per 256 elements: scale and minimum of the whole, eight of both in 6 bits, and nibbles of 64 by 64."""
    packed = raw[..., 4:16]
    first, second, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 0x3F, (rest & 0x0F) | ((first >> 2) & 0x30)], axis=-1)
    lowest = np.concatenate([second & 0x3F, (rest >> 4) | ((second >> 2) & 0x30)], axis=-1)
    scale, minimum = (_halves(raw[..., at : at + 2]).astype(np.float32)[..., None] for at in (0, 2))
    pairs = raw[..., 16:].reshape(*raw.shape[:-1], 4, 32)
    levels = np.stack([pairs & 0x0F, pairs >> 4], axis=-2)
    rows = raw.shape[:-2]
    return Levels(
        levels.reshape(*rows, -1, 32),
        (scale * scales).reshape(*rows, -1),
        -(minimum * lowest).reshape(*rows, -1),
    )


KEPT_TYPES: dict[Kind, KeptType] = {
    Kind.Q4_0: KeptType(4, 32, False, "float16", 8, _q4_0),
    Kind.Q4_1: KeptType(4, 32, True, "float16", 0, _q4_1),
    Kind.Q4_K: KeptType(4, 32, True, "float32", 0, _q4_k),
    Kind.Q8_0: KeptType(8, 32, False, "float16", 128, _q8_0),
}
