"""Quantized blocks in the data file, and the nodes that multiply by them and gather rows of them.

Knows MatMulNBits and GatherBlockQuantized, scales in float16, and blocks with minimums. Knows nothing of
where blocks come from.

onnxruntime's kernels take scales in float32 alone: those in float16 are cast by a node over constants, which
is computed once while the graph opens. MatMulNBits takes zero points of any float, too, but unpacks the whole
matrix to float32 at every run then: at one token 50 to 240 times slower (onnxruntime 1.32, 3072 × 576 and
4096 × 4096, AVX-512). What a minimum adds is the same for all codes of a block, so it is multiplied by the
sum of the block's inputs, beside symmetric blocks:

    sum (code * scale + minimum) x = sum (code - half) * scale * x + (minimum + half * scale) * sum x

which takes a tenth more time and is as exact as float32 is.

Inputs meet the codes as one of `Activations`:

    int8        rounded block by block by the kernel: errors of 0.5 %, the fastest
    int8_twice  what rounding leaves is multiplied as well: errors of 0.002 %; 1.7 times the time of int8 for
                one token, twice or more for many
    float32     as they are: 2 to 4 times the time for one token, the same for many; of 4 bits alone, since
                onnxruntime unpacks 8-bit codes at every run then
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder

Activations = Literal["int8", "int8_twice", "float32"]
_ACCURACY_LEVELS = {"int8": 4, "int8_twice": 4, "float32": 0}
_LARGEST = 127  # what the kernel maps the greatest magnitude of a block of inputs to


@dataclasses.dataclass(frozen=True)
class Stored:
    """Bytes in the data file with the shape they were written in; initializers in any frame may refer to
    them.
    """

    tensor: ir.ExternalTensor

    def value(
        self, g: GraphBuilder, name: str, shape: tuple[int, ...] | None = None, outer: bool = False
    ) -> ir.Value:
        """An initializer over these bytes, under another shape if given; see `GraphBuilder.initializer`."""
        t = self.tensor
        shape = t.shape.numpy() if shape is None else shape
        tensor = ir.ExternalTensor(t.location, t.offset, t.length, t.dtype, shape=ir.Shape(shape), name=name)
        return g.initializer(tensor, outer=outer)

    def float_value(self, g: GraphBuilder, name: str, outer: bool = False) -> ir.Value:
        """The same as float32, whatever float is stored."""
        if self.tensor.dtype == ir.DataType.FLOAT:
            return self.value(g, name, outer=outer)
        return g.once(
            ("float", self.tensor.offset),
            lambda: g.Cast(self.value(g, name), to=int(ir.DataType.FLOAT), name=f"{name}.float"),
        )


@dataclasses.dataclass(frozen=True)
class StoredBlocks:
    """Codes [N, blocks, bytes], scales [N, blocks] and, unless the blocks are symmetric, minimums like them
    of a quantized matrix.
    """

    codes: Stored
    scales: Stored
    minimums: Stored | None
    shape: tuple[int, int, int]
    bits: int
    block_size: int

    def multiply(
        self, g: GraphBuilder, x: ir.Value, columns: int, name: str, activations: Activations,
        bias: ir.Value | None = None, outer: bool = False,
    ) -> ir.Value:  # fmt: skip
        """x [1, T, columns] -> [1, T, N]."""
        codes = self.codes.value(g, f"{name}.codes", outer=outer)
        scales = self.scales.float_value(g, f"{name}.scales", outer)
        twice = activations == "int8_twice"
        optional = [] if bias is None or twice else [None, None, bias]
        y = g.MatMulNBits(
            self._split(g, x, columns, name) if twice else x, codes, scales, *optional, name=name,
            N=self.shape[0], K=columns, bits=self.bits, block_size=self.block_size,
            accuracy_level=_ACCURACY_LEVELS[activations],
        )  # fmt: skip
        if twice:
            y = g.ReduceSum(y, g.constant([0], f"{name}.first", "int64"), keepdims=1, name=f"{name}.whole")
            y = y if bias is None else g.Add(y, bias, name=f"{name}.biased")
        if self.minimums is None:
            return y
        assert columns == self.shape[1] * self.block_size, "blocks with minimums have no padding"
        split = g.constant([0, 0, -1, self.block_size], f"{name}.split", "int64")
        last = g.constant([3], f"{name}.last", "int64")
        sums = g.ReduceSum(g.Reshape(x, split, name=f"{name}.split"), last, keepdims=0, name=f"{name}.sums")
        lowest = self.minimums
        offsets = g.once(
            ("offsets", lowest.tensor.offset),
            lambda: g.Transpose(self._offsets(g, lowest, scales, name), perm=[1, 0], name=f"{name}.offsets"),
        )
        return g.Add(y, g.MatMul(sums, offsets, name=f"{name}.offset"), name=f"{name}.moved")

    def _split(self, g: GraphBuilder, x: ir.Value, columns: int, name: str) -> ir.Value:
        """x [1, T, columns] as two rows of a batch: what the kernel's own rounding keeps, and the rest."""
        assert columns == self.shape[1] * self.block_size, "the last block of inputs must be whole"
        shape = g.constant([0, 0, -1, self.block_size], f"{name}.in_blocks", "int64")
        joined = g.constant([0, 0, columns], f"{name}.in_rows", "int64")
        last = g.constant([3], f"{name}.last", "int64")
        with g.scope(f"{name}.inputs"):
            blocks = g.Reshape(x, shape, name="blocks")
            top = g.ReduceMax(g.Abs(blocks, name="size"), last, keepdims=1, name="top")
            step = g.Mul(top, g.constant(np.float32(1 / _LARGEST), "share"), name="share")
            # A block of zeros has a step as well.
            step = g.Max(step, g.constant(np.float32(1e-30), "least"), name="step")
            rounded = g.Mul(g.Round(g.Div(blocks, step, name="steps"), name="levels"), step, name="rounded")
            rest = g.Sub(blocks, rounded, name="rest")
            return g.Reshape(g.Concat(rounded, rest, axis=0, name="both"), joined, name="pair")

    def gather(self, g: GraphBuilder, ids: ir.Value, name: str) -> ir.Value:
        """Rows of the matrix: int64 [...] -> float32 [..., K]."""
        rows, blocks, size = self.shape
        codes = self.codes.value(g, f"{name}.codes", (rows, blocks * size))
        scales = self.scales.float_value(g, f"{name}.scales")
        y = g.GatherBlockQuantized(
            codes, ids, scales, name=name, bits=self.bits, block_size=self.block_size, gather_axis=0,
            quantize_axis=1,
        )  # fmt: skip
        if self.minimums is None:
            return y
        offsets = g.Gather(self._offsets(g, self.minimums, scales, name), ids, name=f"{name}.offsets", axis=0)
        split = g.constant([0, 0, blocks, self.block_size], f"{name}.split", "int64")
        joined = g.constant([0, 0, blocks * self.block_size], f"{name}.joined", "int64")
        wide = g.Unsqueeze(offsets, g.constant([3], f"{name}.last", "int64"), name=f"{name}.wide")
        moved = g.Add(g.Reshape(y, split, name=f"{name}.blocks"), wide, name=f"{name}.moved")
        return g.Reshape(moved, joined, name=f"{name}.rows")

    def _offsets(self, g: GraphBuilder, minimums: Stored, scales: ir.Value, name: str) -> ir.Value:
        """minimum + half · scale [N, blocks]."""
        half = g.constant(np.float32(2 ** (self.bits - 1)), f"{name}.half")
        lowest = minimums.float_value(g, f"{name}.minimums")
        return g.Add(lowest, g.Mul(scales, half, name=f"{name}.middle"), name=f"{name}.level")
