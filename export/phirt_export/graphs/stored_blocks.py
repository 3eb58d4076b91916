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
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder


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
        self, g: GraphBuilder, x: ir.Value, columns: int, name: str, accuracy_level: int,
        bias: ir.Value | None = None, outer: bool = False,
    ) -> ir.Value:  # fmt: skip
        """x [1, T, columns] -> [1, T, N]."""
        codes = self.codes.value(g, f"{name}.codes", outer=outer)
        scales = self.scales.float_value(g, f"{name}.scales", outer)
        optional = [] if bias is None else [None, None, bias]
        y = g.MatMulNBits(
            x, codes, scales, *optional, name=name, N=self.shape[0], K=columns, bits=self.bits,
            block_size=self.block_size, accuracy_level=accuracy_level,
        )  # fmt: skip
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
