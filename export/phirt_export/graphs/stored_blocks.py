"""Quantized blocks in the data file, and the nodes that multiply by them and gather rows of them.

Knows MatMulNBits and GatherBlockQuantized, scales in float16, 6 bits that lie as 4 and 2, and blocks with
minimums. Knows nothing of where blocks come from.

6 bits are two nodes, over the upper codes with four times the scale and over the lower ones; their sum is
exact. It takes the time of 4 bits and 2, that of their bytes.

onnxruntime's kernels take scales in float32 alone: those in float16 are cast by a node over constants, which
is computed once while the graph opens. MatMulNBits takes zero points of any float, too, but unpacks the whole
matrix to float32 at every run then: at one token 50 to 240 times slower (onnxruntime 1.32, 3072 × 576 and
4096 × 4096, AVX-512). What a minimum adds is the same for all codes of a block, so it is multiplied by the
sum of the block's inputs, beside symmetric blocks:

    sum (code * scale + minimum) x = sum (code - half) * scale * x + (minimum + half * scale) * sum x

which takes a tenth more time and is as exact as float32 is.

Inputs meet the codes as one of `Activations`:

    int8        rounded block by block by the kernel: errors of 0.5 %, the fastest
    int8_twice  what rounding leaves is multiplied as well: errors of 0.002 %; with onnxruntime's own kernels
                1.7 times the time of int8 for one token, twice or more for many
    float32     as they are: 2 to 4 times the time for one token, the same for many; of 4 bits alone, since
                onnxruntime unpacks 8-bit codes at every run then
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder
from phirt_quant.blockwise import LOW_BITS

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
    """The arrays of a `phirt_quant.blockwise.BlockQuantized` matrix, under their names there."""

    codes: Stored
    scales: Stored
    columns: int
    bits: int
    block_size: int
    minimums: Stored | None = None
    low_codes: Stored | None = None

    def arrays(self) -> dict[str, Stored]:
        """Those that there are, by name."""
        named = {name: getattr(self, name) for name in ("codes", "low_codes", "scales", "minimums")}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def padded_columns(self) -> int:
        """Columns with the zeros that fill up the last block."""
        return self._shape[1] * self.block_size

    @property
    def _shape(self) -> tuple[int, int]:
        """Rows and blocks in a row."""
        rows, blocks = self.scales.tensor.shape.numpy()
        return rows, blocks

    def multiply(
        self, g: GraphBuilder, x: ir.Value, name: str, activations: Activations,
        bias: ir.Value | None = None, outer: bool = False,
    ) -> ir.Value:  # fmt: skip
        """x [1, T, columns] -> [1, T, N]."""
        # The rounding in the graph knows no padding; what the kernel leaves is not made good then.
        twice = activations == "int8_twice" and self.columns == self.padded_columns
        parts = self._parts(g, name, outer)
        optional = [] if bias is None or twice or len(parts) > 1 else [None, None, bias]
        inputs = self._split(g, x, name) if twice else x
        products = [
            g.MatMulNBits(
                inputs, codes, scales, *optional, name=part_name, N=self._shape[0], K=self.columns, bits=bits,
                block_size=self.block_size, accuracy_level=_ACCURACY_LEVELS[activations],
            )
            for part_name, codes, scales, bits in parts
        ]  # fmt: skip
        y = products[0] if len(products) == 1 else g.Add(*products, name=f"{name}.both")
        if twice:
            y = g.ReduceSum(y, g.constant([0], f"{name}.first", "int64"), keepdims=1, name=f"{name}.whole")
        if bias is not None and not optional:
            y = g.Add(y, bias, name=f"{name}.biased")
        return y if self.minimums is None else self._moved(g, x, y, self.minimums, name, outer)

    def _parts(
        self, g: GraphBuilder, name: str, outer: bool = False, flat: bool = False
    ) -> list[tuple[str, ir.Value, ir.Value, int]]:
        """Name, codes, scales and bits of each of the matrices whose sum this is; codes [N, blocks, bytes],
        or flat [N, bytes].
        """

        def value(stored: Stored, part: str) -> ir.Value:
            rows, *inner = stored.tensor.shape.numpy()
            return stored.value(g, part, (rows, int(np.prod(inner))) if flat else None, outer)

        codes = value(self.codes, f"{name}.codes")
        scales = self.scales.float_value(g, f"{name}.scales", outer)
        if self.low_codes is None:
            return [(name, codes, scales, self.bits)]
        wide = g.once(("upper", self.scales.tensor.offset), lambda: self._upper_scales(g, name))
        return [
            (name, codes, wide, self.bits - LOW_BITS),
            (f"{name}.low", value(self.low_codes, f"{name}.low_codes"), scales, LOW_BITS),
        ]

    def _upper_scales(self, g: GraphBuilder, name: str) -> ir.Value:
        """The step of the upper codes [N, blocks]: four times that of the lower ones."""
        four = g.constant(np.float32(2**LOW_BITS), f"{name}.four")
        return g.Mul(self.scales.float_value(g, f"{name}.steps"), four, name=f"{name}.upper_scales")

    def _moved(
        self, g: GraphBuilder, x: ir.Value, y: ir.Value, minimums: Stored, name: str, outer: bool
    ) -> ir.Value:
        """y of symmetric blocks with what the minimums add."""
        assert self.columns == self.padded_columns, "blocks with minimums have no padding"
        scales = self.scales.float_value(g, f"{name}.scales", outer)
        split = g.constant([0, 0, -1, self.block_size], f"{name}.split", "int64")
        last = g.constant([3], f"{name}.last", "int64")
        sums = g.ReduceSum(g.Reshape(x, split, name=f"{name}.split"), last, keepdims=0, name=f"{name}.sums")
        offsets = g.once(
            ("offsets", minimums.tensor.offset),
            lambda: g.Transpose(
                self._offsets(g, minimums, scales, name), perm=[1, 0], name=f"{name}.offsets"
            ),
        )
        return g.Add(y, g.MatMul(sums, offsets, name=f"{name}.offset"), name=f"{name}.moved")

    def _split(self, g: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
        """x [1, T, columns] as two rows of a batch: what the kernel's own rounding keeps, and the rest."""
        shape = g.constant([0, 0, -1, self.block_size], f"{name}.in_blocks", "int64")
        joined = g.constant([0, 0, self.columns], f"{name}.in_rows", "int64")
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
        gathered = [
            g.GatherBlockQuantized(
                codes, ids, scales, name=part_name, bits=bits, block_size=self.block_size, gather_axis=0,
                quantize_axis=1,
            )
            for part_name, codes, scales, bits in self._parts(g, name, flat=True)
        ]  # fmt: skip
        y = gathered[0] if len(gathered) == 1 else g.Add(*gathered, name=f"{name}.both")
        if self.minimums is None:
            return y
        scales, blocks = self.scales.float_value(g, f"{name}.scales"), self._shape[1]
        offsets = g.Gather(self._offsets(g, self.minimums, scales, name), ids, name=f"{name}.offsets", axis=0)
        split = g.constant([0, 0, blocks, self.block_size], f"{name}.split", "int64")
        joined = g.constant([0, 0, self.padded_columns], f"{name}.joined", "int64")
        wide = g.Unsqueeze(offsets, g.constant([3], f"{name}.last", "int64"), name=f"{name}.wide")
        moved = g.Add(g.Reshape(y, split, name=f"{name}.blocks"), wide, name=f"{name}.moved")
        return g.Reshape(moved, joined, name=f"{name}.rows")

    def _offsets(self, g: GraphBuilder, minimums: Stored, scales: ir.Value, name: str) -> ir.Value:
        """minimum + half · scale [N, blocks]."""
        half = g.constant(np.float32(2 ** (self.bits - 1)), f"{name}.half")
        lowest = minimums.float_value(g, f"{name}.minimums")
        return g.Add(lowest, g.Mul(scales, half, name=f"{name}.middle"), name=f"{name}.level")
