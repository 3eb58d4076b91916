"""Rotary tables of the decoder graph: cosines and sines per position and pair, with LongRoPE factors (arXiv
2402.13753).

Knows the formula and which rows belong to which regime. Knows nothing of attention.
"""

from __future__ import annotations

import math

import numpy as np

from phirt.errors import ConfigError
from phirt_export.reference.config import RopeConfig

# GroupQueryAttention refuses tables of another width.
_PAIRS_MULTIPLE = 8


def magnitude(rope: RopeConfig) -> float:
    """Factor of both tables in both regimes: the one given, else LongRoPE's, which is sqrt(1 + ln(context /
    original) / ln(original)), or 1 without extension.
    """
    if rope.magnitude is not None:
        return rope.magnitude
    if rope.context <= rope.original_context:
        return 1.0
    return math.sqrt(1 + math.log(rope.context / rope.original_context) / math.log(rope.original_context))


def regime_tables(
    rope: RopeConfig, factors: tuple[float, ...], positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32 [positions, rotary_dim / 2]; frequency i is 1 / (factor_i · theta^(2i /
    rotary_dim)).
    """
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim
    frequencies = 1.0 / (np.asarray(factors, dtype=np.float64) * rope.theta**exponents)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    scale = magnitude(rope)
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def tables(rope: RopeConfig) -> tuple[np.ndarray, np.ndarray]:
    """The tables a graph holds, float32 [rows, rotary_dim / 2].

    With a long regime these are the short rows 0..original_context-1 followed by the long rows 0..context-1,
    so that a position plus `original_context` finds its long row: one lookup table serves both regimes
    without copying either.

    Raises:
        ConfigError: a rotary width that the attention operator does not take.
    """
    if rope.rotary_dim % (2 * _PAIRS_MULTIPLE):
        raise ConfigError(
            f"rotary_dim {rope.rotary_dim} cannot be exported; the attention operator needs a multiple of "
            f"{2 * _PAIRS_MULTIPLE}"
        )
    if not rope.has_long_regime:
        return regime_tables(rope, rope.short_factor, rope.context)
    short = regime_tables(rope, rope.short_factor, rope.original_context)
    long = regime_tables(rope, rope.long_factor, rope.context)
    return np.concatenate([short[0], long[0]]), np.concatenate([short[1], long[1]])
