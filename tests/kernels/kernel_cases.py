"""Cases of block-quantized products, and what they are by MatMulNBits' definition, in float64 with NumPy.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits: weights
are (code - zero point) * scale of their block, codes lie lowest bits first. With accuracy level 4 each block
of a row of activations is rounded to int8 first: its greatest magnitude becomes 127. Knows the protocol of
quant/kernels/tests/products.cc; nothing of the kernels.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]

NAMES = ("generic", "avx2", "avx-vnni", "avx512-vnni", "amx-int8", "neon-dotprod", "neon-i8mm")
LACKING = 3  # the program's status where a CPU has not the instruction set
EPSILON = 2.0**-24  # the most that rounding to float32 changes, relatively
LEAST = 127 / 2.0**128  # 127 divided by less overflows: such blocks of activations may count as zeros


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one product; offsets in bytes say how arrays lie in memory."""

    inner: int
    bits: int
    block_size: int
    codes: Array
    scales: Array
    zero_points: Array | None
    bias: Array | None
    values: Array  # [rows, inner], or twice as many columns where they are gated
    sums: Array | None = None
    gated: bool = False
    twice: bool = False  # what rounding leaves is multiplied too
    float_offset: int = 0
    byte_offset: int = 0
    threads: int = 1

    @property
    def columns(self) -> int:
        return len(self.codes)

    def stream(self) -> bytes:
        """The case as the program reads it."""
        numbers = (
            self.columns, self.inner, self.bits, self.block_size, len(self.values),
            *(array is not None for array in (self.zero_points, self.bias, self.sums)),
            self.gated, self.twice,
            self.float_offset, self.byte_offset, self.threads,
        )  # fmt: skip
        arrays = [self.codes, self.scales, self.zero_points, self.bias, self.values, self.sums]
        parts = [array.tobytes() for array in arrays if array is not None]
        return b"".join((np.array(numbers, np.int64).tobytes(), *parts))

    def row(self, index: int) -> Case:
        """One row alone."""
        own = slice(index, index + 1)
        sums = None if self.sums is None else self.sums[own]
        return dataclasses.replace(self, values=self.values[own], sums=sums)


def make_case(
    rng: np.random.Generator, columns: int, inner: int, bits: int, block_size: int, rows: int,
    zero_points: bool = False, bias: bool = False, *, half: bool = False, sums: bool = False,
    gated: bool = False, twice: bool = False, **placed: int,
) -> Case:  # fmt: skip
    """A case with random numbers; `half` has scales that float16 holds."""
    blocks = -(-inner // block_size)
    scales = rng.uniform(0.01, 0.1, (columns, blocks)).astype(np.float16 if half else np.float32)
    row = -(-blocks * bits // 8)
    return Case(
        inner, bits, block_size,
        codes=rng.integers(0, 256, (columns, blocks, block_size * bits // 8), dtype=np.uint8),
        scales=scales.astype(np.float32),
        zero_points=rng.integers(0, 256, (columns, row), dtype=np.uint8) if zero_points else None,
        bias=rng.standard_normal(columns, np.float32) if bias else None,
        values=rng.standard_normal((rows, inner * (1 + gated)), np.float32) * (1 + 4 * gated),
        sums=rng.standard_normal((rows, columns), np.float32) if sums else None,
        gated=gated,
        twice=twice,
        **placed,
    )  # fmt: skip


def unpacked(packed: Array, count: int, bits: int) -> Array:
    """The first `count` codes of each row of bytes."""
    one_by_one = np.unpackbits(packed, axis=-1, bitorder="little")[..., : count * bits]
    return one_by_one.reshape(*packed.shape[:-1], count, bits) @ (1 << np.arange(bits))


def _weights(case: Case) -> Array:
    """Codes without their zero points [columns, blocks, block_size]."""
    zero: Any = 1 << (case.bits - 1)
    if case.zero_points is not None:
        zero = unpacked(case.zero_points, case.codes.shape[1], case.bits)[..., None]
    return unpacked(case.codes, case.block_size, case.bits) - zero


def activations(case: Case) -> Array:
    """What is multiplied, in float64: SwiGLU of the halves where values are gated."""
    values = case.values.astype(np.float64)
    if not case.gated:
        return values
    gates, factors = np.split(values, 2, axis=1)
    return gates / (1 + np.exp(-gates)) * factors


def _rounded(values: Array, near: float) -> tuple[Array, Array]:
    """Blocks [..., block_size] rounded to int8, and the steps of those that lie so near the middle of two
    codes that either is right; 0 of others.
    """
    greatest = np.abs(values).max(axis=-1, keepdims=True)
    steps = np.where(greatest > 0, greatest, 1) / 127
    codes = np.rint(values / steps)
    in_the_middle = np.abs(np.abs(values / steps - codes) - 0.5) < near
    return codes * steps, np.where(greatest < LEAST * 1.01, np.abs(values), in_the_middle * steps)


def expected(case: Case) -> tuple[Array, Array]:
    """The product in float64, and how far float32 may be from it: an error for each rounding, and a code more
    or less for activations that lie in the middle of two codes.
    """
    blocks, weights = case.codes.shape[1], _weights(case)
    padded = np.zeros((len(case.values), blocks * case.block_size))
    padded[:, : case.inner] = activations(case)
    values = padded.reshape(len(padded), blocks, case.block_size)
    rounded, doubt = _rounded(values, 1e-4)
    if case.twice:  # a rest of half a step is rounded to itself either way
        rests, doubt = _rounded(values - rounded, 1e-2)
        rounded = rounded + rests

    scales = case.scales.astype(np.float64)
    terms = np.einsum("mbk,nbk->mnb", rounded, weights) * scales
    bias = 0 if case.bias is None else case.bias.astype(np.float64)
    sums = 0 if case.sums is None else case.sums.astype(np.float64)
    roundings = blocks * (1 + case.twice) + 7 + 8 * case.gated
    error = roundings * EPSILON * (np.abs(terms).sum(-1) + np.abs(bias) + np.abs(sums))
    error = error + np.einsum("mbk,nbk,nb->mn", doubt, np.abs(weights), np.abs(scales))
    error = error + blocks * 2.0**-126  # products of scales below float32's
    return terms.sum(-1) + bias + sums, error


def magnitudes(case: Case) -> Array:
    """The sums of all products' magnitudes."""
    weights = np.abs(_weights(case) * case.scales.astype(np.float64)[..., None])
    return np.abs(activations(case)) @ weights.reshape(len(weights), -1)[:, : case.inner].T


def assert_right(case: Case, found: Array) -> None:
    """`found` is the product, as exactly as float32 can say it."""
    right, error = expected(case)
    wrong = np.argwhere(~(np.abs(found - right) <= error))
    assert not len(wrong), (case_name(case), wrong[:5], found[tuple(wrong[0])], right[tuple(wrong[0])])


def case_name(case: Case) -> str:
    """What a failure is told with."""
    arrays = [array is not None for array in (case.zero_points, case.bias, case.sums)]
    ways = f"{arrays} {case.gated} {case.twice}"
    return f"{case.columns} {case.inner} {case.bits} {case.block_size} {len(case.values)} {ways}"


def compute(
    program: Path, name: str, cases: Sequence[Case], through: Sequence[str] = ()
) -> list[Array] | None:
    """What the program makes of the cases with an instruction set; None where this CPU lacks it."""
    data = b"".join(case.stream() for case in cases)
    done = subprocess.run([*through, str(program), name], input=data, capture_output=True, timeout=300)
    if done.returncode == LACKING:
        return None
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
    found = np.frombuffer(done.stdout, np.float32)
    ends = np.cumsum([len(case.values) * case.columns for case in cases])
    assert len(found) == ends[-1]
    parts = np.split(found, ends[:-1])
    return [part.reshape(len(case.values), -1) for case, part in zip(cases, parts, strict=True)]


def fuzzed() -> list[Case]:
    """The cases that every instruction set computes: shapes of all kinds, and what is easily wrong."""
    rng = np.random.default_rng(20)
    cases = []
    for bits in (2, 4, 8):
        for block_size in (16, 32, 64, 128, 256):
            columns, inner = (int(rng.integers(1, most)) for most in (70, 3 * block_size + 90))
            has_zero_points, has_bias, half = (bool(rng.integers(2)) for _ in range(3))
            placed = {
                "float_offset": int(rng.integers(4)) * 4,
                "byte_offset": int(rng.integers(8)),
                "threads": int(rng.integers(1, 4)),
            }
            shape = (columns, inner, bits, block_size, int(rng.integers(1, 12)))
            cases.append(make_case(rng, *shape, has_zero_points, has_bias, half=half, **placed))
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 40):
        cases.append(make_case(rng, 48, 160, 4, 32, rows, zero_points=rows % 2 == 0, bias=rows % 3 == 0))
    cases.append(make_case(rng, 1, 1, 8, 16, 1))
    cases.append(
        make_case(rng, 33, 513, 4, 128, 4, True, True, half=True, float_offset=4, byte_offset=1, threads=3)
    )
    # Rows enough for tiles, pairs of tiles and more than are computed together.
    for block_size, bits, rows in ((32, 8, 33), (64, 4, 130), (128, 4, 33), (128, 8, 165), (256, 8, 33)):
        cases.append(make_case(rng, 70, 2 * block_size + 9, bits, block_size, rows, bits == 8, threads=3))
    for columns, rows in ((33, 1), (48, 3), (70, 33)):
        added = {"sums": True, "gated": True}
        cases.append(make_case(rng, columns, 265, 4, 64, rows, float_offset=4, threads=2, **added))
        cases.append(make_case(rng, columns, 300, 8, 128, rows, True, True, sums=True, threads=3))
        cases.append(make_case(rng, columns, 300, 4, 32, rows, True, True, twice=True, threads=2))
    return [*cases, *extreme(rng)]


def extreme(rng: np.random.Generator) -> list[Case]:
    """Sums as large as they become, and activations at the borders of float32."""
    most = make_case(rng, 18, 512, 8, 256, 3, zero_points=True)
    most.codes[:], most.values[:] = 255, np.array([[1.0], [-1.0], [1e30]])
    assert most.zero_points is not None
    most.zero_points[:] = 0
    least = make_case(rng, 18, 512, 8, 256, 2)
    least.codes[:], least.values[:] = 0, -1.0
    coarse = make_case(rng, 17, 256, 4, 128, 2)
    coarse.codes[:], coarse.values[:] = 0xFF, 1.0
    small = make_case(rng, 20, 96, 4, 32, 6)
    small.values[:] *= np.array([[0.0], [1e-45], [1e-40], [2e-38], [1e-36], [1e36]])
    lone = make_case(rng, 20, 96, 4, 32, 2, zero_points=True)
    lone.values[:, 1:] = 0.0
    ties = make_case(rng, 16, 64, 4, 32, 2)
    ties.values[:] = np.concatenate([[127.0], np.arange(63) - 31.5])
    ties.values[1] *= -1
    return [most, least, coarse, small, lone, ties]


def require_programs(*names: str) -> None:
    """Skips where one of these programs is not installed."""
    if missing := [name for name in names if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
