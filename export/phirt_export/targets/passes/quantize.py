"""Pass: a float32 graph of one size in the form that fixed-point machines take: every tensor goes through
QuantizeLinear and DequantizeLinear, with 16 bits for what is computed and 8 or 4 for matrices.

A pair of nodes around an operator tells a machine that it may compute the operator in whole numbers. Tensors
that an operator only moves have one scale before and behind it. Int4 matrices have a scale for each block of
inputs, which is itself a small number times a scale of the output: that number is 1 to 15, the form that
Qualcomm's HTP takes for blocks.

The HTP multiplies 16 bits by 8: of two tensors that are computed, it takes the upper 8 bits of the second,
which costs attention 2 % of its outputs. So the second is multiplied in two parts, its upper 8 bits and what
these leave, and the results are added: 0.2 %.

Knows operators by what they do to numbers. Knows nothing of models or data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from phirt_export.variants.emitter import Emitter, dims
from phirt_export.variants.rewriter import name_of

# Operators whose outputs are numbers of their inputs.
_MOVING = frozenset({
    "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
# Those whose outputs lie in a known range.
_BOUNDED = {"Softmax": (0.0, 1.0), "Sigmoid": (0.0, 1.0)}
_LEAST = 1e-4  # of a range, so that it has a scale
_LEVELS, _BYTE = 65535, 255
_HEAD = 128  # elements of a head, or more
_LEAST_SCALE = 1e-9
_BLOCK_STEPS = 15
_STEPS_TRIED = 4
# Steps of the greatest block of a column, of which the one is taken that suits the others.
_TOPS = (15.0, 14.5, 14.0, 13.5, 13.0, 12.0, 11.0)
_SLAB = 256  # columns of a matrix that are quantized together


@dataclasses.dataclass(frozen=True)
class WeightScheme:
    """How matrices are stored: `bits` 8 or 4; 4 in blocks of `block` inputs. Matrices of adapters, and those
    whose inputs are no multiple of the block, have 8 bits. `margin` is what ranges are widened by, as a share
    of each, since other data reach further than those that were looked at.
    """

    bits: int = 8
    block: int = 32
    margin: float = 0.1


@dataclasses.dataclass(frozen=True)
class Observed:
    """What real data make of a float32 graph: the range of each tensor by name, and for those that matrices
    multiply how much each of their elements [K] matters.
    """

    ranges: Mapping[str, tuple[float, float]]
    importance: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def quantized(model: ir.Model, observed: Observed, scheme: WeightScheme) -> ir.Model:
    """The graph in that form. Inputs and outputs stay float32, but for keys and values, which are the 16-bit
    numbers themselves.
    """
    return _Quantizer(model.graph, observed, scheme).model()


class StoredMatrices:
    """Matrices of one graph as codes and scales."""

    def __init__(
        self, g: Emitter, scheme: WeightScheme, importance: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.g, self._scheme, self._importance = g, scheme, importance or {}

    def matrix(self, value: ir.Value, multiplies: str | None = None) -> ir.Value:
        """The dequantized matrix [K, N], with a scale for each output, or for each block of inputs of it;
        `multiplies` names what it multiplies.
        """
        name, weight = value.name or "matrix", value.const_value
        assert weight is not None
        rows, columns = weight.shape.numpy()
        block = self._scheme.block
        if self._scheme.bits == 4 and rows % block == 0 and not _is_adapters(name):
            matters = self._importance.get(multiplies or "")
            return self._blocks(name, weight, matters, rows, columns, block)
        parts = _Lazy(lambda: _by_column(weight.numpy()))
        codes = self._lazy(parts, 0, ir.DataType.INT8, (rows, columns), f"{name}.codes")
        scales = self._lazy(parts, 1, ir.DataType.FLOAT, (columns,), f"{name}.scales")
        zeros = self.g.constant(np.zeros(columns, np.int8), f"{name}.zeros")
        return self.g.DequantizeLinear(codes, scales, zeros, axis=1, name=name)

    def _blocks(
        self,
        name: str,
        weight: ir.TensorProtocol,
        matters: np.ndarray | None,
        rows: int,
        columns: int,
        block: int,
    ) -> ir.Value:
        g, parts = self.g, _Lazy(lambda: _by_block(weight.numpy(), block, matters))
        codes = self._lazy(parts, 0, ir.DataType.INT4, (rows, columns), f"{name}.codes")
        steps = self._lazy(parts, 1, ir.DataType.UINT8, (rows // block, columns), f"{name}.steps")
        scales = self._lazy(parts, 2, ir.DataType.FLOAT, (columns,), f"{name}.scales")
        none = g.constant(np.zeros(columns, np.uint8), f"{name}.no_step")
        sizes = g.DequantizeLinear(steps, scales, none, axis=1, name=f"{name}.sizes")
        zeros = g.constant(np.zeros((rows // block, columns), ml_dtypes.int4), f"{name}.zeros")
        return g.DequantizeLinear(codes, sizes, zeros, axis=0, block_size=block, name=name)

    def _lazy(
        self, parts: _Lazy, place: int, dtype: ir.DataType, shape: tuple[int, ...], name: str
    ) -> ir.Value:
        tensor = ir.LazyTensor(
            lambda: ir.tensor(parts.computed()[place], dtype=dtype), dtype, ir.Shape(shape), name=name
        )
        return self.g.keep(tensor, name)


class _Quantizer:
    """One graph on its way."""

    def __init__(self, graph: ir.Graph, observed: Observed, scheme: WeightScheme) -> None:
        self._old, self._scheme = graph, scheme
        assert graph.opset_imports[""] is not None
        self.g = Emitter(graph.name or "graph", graph.opset_imports[""])
        self._matrices = StoredMatrices(self.g, scheme, observed.importance)
        self._group: dict[ir.Value, ir.Value] = {}
        self._join()
        self._ranges = self._joined_ranges(observed.ranges)
        self._scales: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._plain: dict[ir.Value, ir.Value] = {}  # dequantized, as operators take it
        self._codes: dict[ir.Value, ir.Value] = {}

    def model(self) -> ir.Model:
        for value in self._old.inputs:
            self._input(value)
        for node in self._old:
            self._node(node)
        for value in self._old.outputs:
            name = value.name or ""
            shape = dims(value)
            if name.startswith("present."):
                self.g.output(self._codes[value], name, "uint16", shape)
            else:
                self.g.output(self._plain[value], name, "float32", shape)
        return self.g.finished("phirt")

    def _input(self, value: ir.Value) -> None:
        name, shape = value.name or "", dims(value)
        if value.dtype != ir.DataType.FLOAT:
            self._plain[value] = self.g.input(name, value.dtype.numpy().name if value.dtype else "", shape)
            return
        if name.startswith("past_key_values."):
            self._codes[value] = self.g.input(name, "uint16", shape)
        else:
            self._encode(value, self.g.input(name, "float32", shape), name)
        self._decode(value, name)

    def _node(self, node: ir.Node) -> None:
        weights = [one for one in node.inputs if one is not None and one.const_value is not None]
        if node.op_type == "MatMul" and not weights:
            self._product(node)
            return
        inputs = [self._taken(node, place) for place in range(len(node.inputs))]
        for old, new in zip(node.outputs, self.g.copy(node, inputs), strict=True):
            if not old.name:
                continue
            if node.op_type == "Cast" or _is_whole(old):
                self._plain[old] = new
                continue
            self._encode(old, new, old.name)
            self._decode(old, old.name)

    def _product(self, node: ir.Node) -> None:
        """Two computed tensors multiplied, the second in two parts."""
        g, name, (first, second) = self.g, name_of(node), node.inputs
        assert first is not None and second is not None
        low, high = self._ranges[self._root(second)]
        step = np.asarray((max(high, 0.0) - min(low, 0.0)) / _BYTE, np.float32)
        zero = np.asarray(round(-min(low, 0.0) / float(step)), np.uint8)
        byte = g.constant(step, f"{name}.step"), g.constant(zero, f"{name}.byte_zero")
        codes = g.QuantizeLinear(self._plain[second], *byte, name=f"{name}.upper_codes")
        upper = g.DequantizeLinear(codes, *byte, name=f"{name}.upper")
        left = float(step) / 2 * 1.02
        rest = self._through(g.Sub(self._plain[second], upper), left, f"{name}.rest")
        limits = self._ranges[self._root(node.outputs[0])]
        most = max(abs(limit) for limit in limits)
        by_upper = self._through(g.MatMul(self._plain[first], upper), most, f"{name}.by_upper")
        by_rest = self._through(g.MatMul(self._plain[first], rest), self._most(node, left), f"{name}.by_rest")
        output = node.outputs[0]
        self._encode(output, g.Add(by_upper, by_rest, name=name), output.name or name)
        self._decode(output, output.name or name)

    def _most(self, node: ir.Node, left: float) -> float:
        """The greatest magnitude of a product by something that is at most `left`: shares add up to 1, and
        anything else has the length of a head.
        """
        first = node.inputs[0]
        assert first is not None
        maker = first.producer()
        if maker is not None and maker.op_type == "Softmax":
            return left
        low, high = self._ranges[self._root(first)]
        return _HEAD * max(-low, high) * left

    def _through(self, value: ir.Value, most: float, name: str) -> ir.Value:
        """A value in 16 bits from -`most` to `most`."""
        scale, zero = (
            self.g.constant(one, f"{name}.{what}")
            for one, what in zip(_parameters(-most, most), ("scale", "zero"), strict=True)
        )
        codes = self.g.QuantizeLinear(value, scale, zero, name=f"{name}.codes")
        return self.g.DequantizeLinear(codes, scale, zero, name=name)

    def _taken(self, node: ir.Node, place: int) -> ir.Value | None:
        """An input of a node: dequantized, or a weight in the form that suits the operator."""
        value = node.inputs[place]
        if value is None:
            return None
        if value in self._plain:
            return self._plain[value]
        weight = value.const_value
        assert weight is not None, f"{value.name} was not computed before {node.name}"
        if weight.dtype != ir.DataType.FLOAT:
            self._plain[value] = self.g.keep(weight, value.name or "constant")
        elif node.op_type == "MatMul" and len(weight.shape) == 2 and place == 1:
            x = node.inputs[0]
            self._plain[value] = self._matrices.matrix(value, None if x is None else x.name)
        elif node.op_type == "Conv" and place == 1:
            self._plain[value] = self._filters(value, weight)
        elif node.op_type == "Conv" and place == 2:
            self._plain[value] = self._filters_bias(node, value, weight)
        else:
            self._plain[value] = self._vector(value, weight)
        return self._plain[value]

    def _filters(self, value: ir.Value, weight: ir.TensorProtocol) -> ir.Value:
        """Filters of a convolution, 8 bits with a scale each."""
        name, array = value.name or "filters", weight.numpy()
        codes, scales = _by_column(array.reshape(len(array), -1).T)
        return self.g.DequantizeLinear(
            self.g.constant(np.ascontiguousarray(codes.T).reshape(array.shape), f"{name}.codes"),
            self.g.constant(scales, f"{name}.scales"),
            self.g.constant(np.zeros(len(array), np.int8), f"{name}.zeros"),
            axis=0,
            name=name,
        )

    def _filters_bias(self, node: ir.Node, value: ir.Value, weight: ir.TensorProtocol) -> ir.Value:
        """A convolution's bias in 32 bits: steps of what an input's step times a filter's step makes."""
        name, bias = value.name or "bias", weight.numpy()
        x, filters = node.inputs[:2]
        assert x is not None and filters is not None and filters.const_value is not None
        matrix = filters.const_value.numpy().reshape(len(bias), -1)
        low, high = self._ranges[self._root(x)]
        scales = (_by_column(matrix.T)[1] * _parameters(low, high)[0]).astype(np.float32)
        codes = np.clip(np.rint(bias / scales), -(2**31), 2**31 - 1).astype(np.int32)
        return self.g.DequantizeLinear(
            self.g.constant(codes, f"{name}.codes"),
            self.g.constant(scales, f"{name}.scales"),
            self.g.constant(np.zeros(len(bias), np.int32), f"{name}.zeros"),
            axis=0,
            name=name,
        )

    def _vector(self, value: ir.Value, weight: ir.TensorProtocol) -> ir.Value:
        """Anything else: 16 bits with one scale."""
        name, array = value.name or "vector", weight.numpy()
        scale, zero = _parameters(float(array.min(initial=0)), float(array.max(initial=0)))
        codes = np.clip(np.rint(array / scale) + zero, 0, _LEVELS).astype(np.uint16)
        return self.g.DequantizeLinear(
            self.g.constant(codes, f"{name}.codes"),
            self.g.constant(scale, f"{name}.scale"),
            self.g.constant(zero, f"{name}.zero"),
            name=name,
        )

    def _encode(self, value: ir.Value, plain: ir.Value, name: str) -> None:
        scale, zero = self._scale(value)
        self._codes[value] = self.g.QuantizeLinear(plain, scale, zero, name=f"{name}.quantized")

    def _decode(self, value: ir.Value, name: str) -> None:
        scale, zero = self._scale(value)
        self._plain[value] = self.g.DequantizeLinear(
            self._codes[value], scale, zero, name=f"{name}.dequantized"
        )

    def _scale(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        root = self._root(value)
        if root not in self._scales:
            low, high = self._ranges[root]
            scale, zero = _parameters(low, high)
            name = root.name or "tensor"
            self._scales[root] = (
                self.g.constant(scale, f"{name}.scale"),
                self.g.constant(zero, f"{name}.zero"),
            )
        return self._scales[root]

    def _join(self) -> None:
        """Finds tensors that share numbers, and so a scale."""
        for node in self._old:
            if node.op_type not in _MOVING:
                continue
            shared = [one for one in node.inputs if one is not None and one.const_value is None]
            for other in (*shared[1:], *node.outputs):
                self._group[self._root(other)] = self._root(shared[0])

    def _root(self, value: ir.Value) -> ir.Value:
        while (parent := self._group.get(value, value)) is not value:
            value = parent
        return value

    def _joined_ranges(
        self, ranges: Mapping[str, tuple[float, float]]
    ) -> dict[ir.Value, tuple[float, float]]:
        joined: dict[ir.Value, tuple[float, float]] = {}
        bounded = {
            value: _BOUNDED[node.op_type]
            for node in self._old
            for value in node.outputs
            if node.op_type in _BOUNDED
        }
        values = [*self._old.inputs, *(value for node in self._old for value in node.outputs)]
        for value in values:
            if value not in bounded and value.name not in ranges:
                continue
            root = self._root(value)
            low, high = bounded.get(value) or self._widened(*ranges[value.name or ""])
            known = joined.get(root, (0.0, _LEAST))
            joined[root] = min(known[0], low), max(known[1], high)
        return joined

    def _widened(self, low: float, high: float) -> tuple[float, float]:
        more = self._scheme.margin * (high - low) / 2
        return low - more if low < 0 else low, high + more if high > 0 else high


class _Lazy:
    """Arrays that are made together, when one of them is first asked for."""

    def __init__(self, make: Callable[[], tuple[np.ndarray, ...]]) -> None:
        self._make = make
        self._arrays: tuple[np.ndarray, ...] | None = None

    def computed(self) -> tuple[np.ndarray, ...]:
        if self._arrays is None:
            self._arrays = self._make()
        return self._arrays


def _parameters(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of 16 bits: 0 is a number exactly."""
    low, high = min(low, 0.0), max(high, _LEAST, 0.0)
    scale = np.float32((high - low) / _LEVELS)
    return np.asarray(scale, np.float32), np.asarray(round(-low / float(scale)), np.uint16)


def _by_column(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [K, N] and scales [N]: the greatest magnitude of a column is 127 steps."""
    scales = np.maximum(np.abs(matrix).max(axis=0) / 127, _LEAST_SCALE).astype(np.float32)
    return np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8), scales


def _by_block(
    matrix: np.ndarray, block: int, matters: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes int4 [K, N], steps uint8 [K / block, N] from 1 to 15, scales [N]: those of a few with the least
    squared error, in which inputs [K] count by how much they matter.
    """
    weights = np.ones(len(matrix), np.float32) if matters is None else matters + matters.mean() * 1e-2
    weights = weights.reshape(-1, block, 1)
    parts = [
        _columns_by_block(matrix[:, at : at + _SLAB], block, weights)
        for at in range(0, matrix.shape[1], _SLAB)
    ]
    codes, steps, scales = (np.concatenate(of, axis=-1) for of in zip(*parts, strict=True))
    return codes.astype(ml_dtypes.int4), steps, scales


def _columns_by_block(
    matrix: np.ndarray, block: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows // block, block, columns)
    # A step suits a block whose greatest magnitude is 7 of them, or 8 where that is negative.
    needed = np.maximum(blocks.max(axis=1) / 7, -blocks.min(axis=1) / 8)
    greatest = np.maximum(needed.max(axis=0), _LEAST_SCALE * _BLOCK_STEPS)
    best = np.full(columns, np.inf, np.float32)
    chosen = np.zeros(blocks.shape, np.int8), np.ones(needed.shape, np.uint8), np.zeros(columns, np.float32)
    for top in _TOPS:
        scales = (greatest / top).astype(np.float32)
        codes, steps, error = _with_scales(blocks, scales, needed, weights)
        better = error < best
        best = np.where(better, error, best)
        chosen = (
            np.where(better, codes, chosen[0]),
            np.where(better, steps, chosen[1]),
            np.where(better, scales, chosen[2]),
        )
    return chosen[0].reshape(rows, columns), chosen[1], chosen[2]


def _with_scales(
    blocks: np.ndarray, scales: np.ndarray, needed: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes and steps of blocks [blocks, block, N] under scales [N], and the squared error of each column.
    The step that a block needs, and the three below: outliers are cut where that serves the others.
    """
    least = np.full(needed.shape, np.inf, np.float32)
    steps, codes = np.ones(needed.shape, np.uint8), np.zeros(blocks.shape, np.int8)
    wanted = np.ceil(needed / scales - 1e-4)
    for below in range(_STEPS_TRIED):
        step = np.clip(wanted - below, 1, _BLOCK_STEPS).astype(np.float32)
        size = (scales * step)[:, None]
        rounded = np.clip(np.rint(blocks / size), -8, 7)
        error = (weights * (rounded * size - blocks) ** 2).sum(axis=1)
        better = error < least
        least = np.where(better, error, least)
        steps = np.where(better, step, steps).astype(np.uint8)
        codes = np.where(better[:, None], rounded, codes).astype(np.int8)
    return codes, steps, least.sum(axis=0)


def _is_adapters(name: str) -> bool:
    return name.endswith((".A.weight", ".B.weight"))


def _is_whole(value: ir.Value) -> bool:
    """Whether a value is known to be no floating point number."""
    return value.dtype is not None and value.dtype != ir.DataType.FLOAT
