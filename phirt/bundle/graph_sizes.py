"""How large the results become that onnxruntime computes while it opens a graph, because nothing they depend
on is given at run time: a few bytes can ask for any amount.

Knows how operators' results grow with their inputs, and follows the short lists of numbers that say shapes.
Knows nothing of weights' content, or of which operators are accepted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from phirt.bundle.onnx_graph import Node, Weight

# What may be computed ahead: elements of results, and multiplications, beside those that the weights explain.
_SPARE_ELEMENTS = 1 << 26
_ELEMENTS_PER_BYTE = 4  # a weight of 4 bits may be unpacked and transposed
_MOST_VALUES = 64
_CLAMP = 1 << 63
_EXACT = 1 << 31  # integers below it are exact in every type that holds them
_INT32, _INT64 = 6, 7  # onnx.TensorProto.DataType

_BROADCASTING = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Where", "Max", "Min", "Mean", "Sum", "PRelu", "BitShift", "BitwiseAnd",
    "BitwiseOr", "BitwiseXor",
})  # fmt: skip
_MULTIPLYING = frozenset({
    "MatMul", "MatMulInteger", "MatMulNBits", "MatMulBnb4", "MatMulInteger16", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "QLinearMatMul", "QOrderedMatMul", "FusedMatMul", "FusedGemm", "Gemm",
    "Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "FusedConv", "Einsum", "GRU", "LSTM", "RNN",
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "MoE", "QMoE", "GatherND",
    "RotaryEmbedding",
})  # fmt: skip

Values = tuple[float | None, ...]  # None for a number that is known at run time only


class SizeError(Exception):
    """Why a result would be too large."""


@dataclasses.dataclass(frozen=True, slots=True)
class Computed:
    """What is known of a value before the graph runs. Only if `constant` are `elements` (at most so many) and
    `shape` meant; `values` may be known in part for others too.
    """

    constant: bool
    elements: int = 1
    shape: tuple[int, ...] | None = None
    values: Values | None = None

    @classmethod
    def of_weight(cls, weight: Weight) -> Computed:
        """What an initializer is."""
        return cls(True, weight.elements, weight.shape, weight.values)


class GraphSizes:
    """Adds up what is computed ahead in one graph whose files have `total` bytes."""

    def __init__(self, total: int) -> None:
        self._left = _SPARE_ELEMENTS + _ELEMENTS_PER_BYTE * total
        self._most = self._left

    def compute(self, node: Node, known: dict[str, Computed]) -> None:
        """Notes what is known of the node's outputs. Raises SizeError."""
        if node.kind == "Constant":
            self._note(node, known, _constant(node))
            return
        inputs = [known.get(name) if name else None for name in node.inputs]
        given = [value for name, value in zip(node.inputs, inputs, strict=True) if name]
        constant = all(value is not None and value.constant for value in given)
        if node.kind == "If":
            # Its branches are then computed ahead as well; no exporter leaves such a choice open.
            if constant:
                raise SizeError("an If has a condition that never changes")
            return
        values = _values(node, inputs)
        if values is not None and len(values) > _MOST_VALUES:
            values = None
        if node.kind in _GROWING:
            elements = _GROWING[node.kind](node, inputs)
            if constant and (elements is None or _has_gaps(given)):
                raise SizeError(f"a {node.kind} has a size that only running it would tell")
            if elements is not None and elements > self._most:
                raise SizeError(f"a {node.kind} makes {elements} elements")
        else:
            elements = None
        if constant:
            known_inputs = [value for value in given if value is not None]
            shape = _shape(node, known_inputs)
            if elements is None:
                elements = _elements(node, known_inputs, shape)
            self._spend(node.kind, elements)
            self._note(node, known, Computed(True, elements, shape, values))
        elif values is not None:
            self._note(node, known, Computed(False, values=values))

    def _spend(self, kind: str, elements: int) -> None:
        self._left -= elements
        if self._left < 0:
            raise SizeError(f"results computed ahead have more than {self._most} elements, those of a {kind}")

    def _note(self, node: Node, known: dict[str, Computed], value: Computed) -> None:
        for name in node.outputs:
            known[name] = value


def _has_gaps(inputs: Sequence[Computed | None]) -> bool:
    """Whether a size among the inputs could be anything."""
    return any(value is not None and value.values is not None and None in value.values for value in inputs)


def _constant(node: Node) -> Computed:
    if node.tensors:
        return Computed.of_weight(node.tensors[0])
    listed = node.integer_lists.get("value_ints")
    if listed is not None:
        return Computed(True, len(listed), (len(listed),), listed if len(listed) <= _MOST_VALUES else None)
    if "value_int" in node.integers:
        return Computed(True, 1, (), (node.integers["value_int"],))
    return Computed(True)  # a float, or floats, which are no shape


def _elements(node: Node, inputs: Sequence[Computed], shape: tuple[int, ...] | None) -> int:
    """At most how many elements, or multiplications, the result of constants takes."""
    if not inputs:
        return 1
    if shape is not None and node.kind not in _MULTIPLYING:
        return max(math.prod(shape), 1)
    sizes = [value.elements for value in inputs]
    if node.kind in _MULTIPLYING or node.kind in _BROADCASTING:
        large = [size for size in sizes if size > 1]
        return min(math.prod(large), _CLAMP)
    if node.kind == "Concat":
        return sum(sizes)
    if node.kind == "Gather":
        return min(math.prod(sizes), _CLAMP)
    return max(sizes)


def _shape(node: Node, inputs: Sequence[Computed]) -> tuple[int, ...] | None:
    """The shape of a result of constants, where it is easily told."""
    if not inputs:
        return None
    first = inputs[0].shape
    if node.kind in _BROADCASTING:
        return _broadcast([value.shape for value in inputs])
    if first is None:
        return None
    if node.kind == "Transpose":
        order = node.integer_lists.get("perm", tuple(reversed(range(len(first)))))
        return tuple(first[axis] for axis in order) if sorted(order) == list(range(len(first))) else None
    if node.kind == "Gather" and inputs[1].shape is not None:
        axis = node.integers.get("axis", 0)
        axis += len(first) if axis < 0 else 0
        return (*first[:axis], *inputs[1].shape, *first[axis + 1 :]) if 0 <= axis < len(first) else None
    if node.kind in ("Cast", "Identity", "Neg", "Sqrt", "Not", "DequantizeLinear", "QuantizeLinear"):
        return first
    if node.kind == "Reshape" and inputs[1].values is not None:
        wanted = [int(value) for value in inputs[1].values if value is not None]
        if len(wanted) == len(inputs[1].values) and all(size > 0 for size in wanted):
            return tuple(wanted) if math.prod(wanted) == inputs[0].elements else None
    return None


def _broadcast(shapes: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(map(len, known), default=0)
    aligned = [(1,) * (rank - len(shape)) + shape for shape in known]
    return tuple(max(sizes) for sizes in zip(*aligned, strict=True))


def _product(values: Values | None) -> int | None:
    """The product of the sizes that are known, if any is; one that is not known counts once."""
    if values is None or all(value is None for value in values):
        return None
    return min(math.prod(max(0, int(value)) for value in values if value is not None), _CLAMP)


def _value(inputs: Sequence[Computed | None], index: int) -> Values | None:
    found = inputs[index] if index < len(inputs) else None
    return None if found is None else found.values


def _own_elements(inputs: Sequence[Computed | None]) -> int:
    """Elements of the first input; one where it is given at run time."""
    return inputs[0].elements if inputs and inputs[0] is not None and inputs[0].constant else 1


def _constant_of_shape(node: Node, inputs: Sequence[Computed | None]) -> int | None:
    if inputs and inputs[0] is not None and inputs[0].constant and inputs[0].elements == 0:
        return 1  # a scalar
    return _product(_value(inputs, 0))


def _expand(node: Node, inputs: Sequence[Computed | None]) -> int | None:
    product = _product(_value(inputs, 1))
    return None if product is None else max(1, product) * (1 if product else 0) * _unmatched(inputs)


def _unmatched(inputs: Sequence[Computed | None]) -> int:
    """By what an Expand's own elements may exceed the shape that is asked for."""
    wanted = _value(inputs, 1)
    first = inputs[0] if inputs else None
    if first is None or not first.constant or wanted is None:
        return 1
    if first.shape is None:
        return first.elements
    sizes = [1 if size is None else int(size) for size in wanted]
    padded = [1] * (len(first.shape) - len(sizes)) + sizes
    tail = padded[len(padded) - len(first.shape) :]
    return math.prod(own if size == 1 else 1 for own, size in zip(first.shape, tail, strict=True))


def _tile(node: Node, inputs: Sequence[Computed | None]) -> int | None:
    product = _product(_value(inputs, 1))
    return None if product is None else product * _own_elements(inputs)


def _range(node: Node, inputs: Sequence[Computed | None]) -> int | None:
    ends = [_value(inputs, index) for index in range(3)]
    if any(end is None or len(end) != 1 or end[0] is None for end in ends):
        return None
    start, limit, step = (end[0] or 0 for end in ends if end is not None)
    return 0 if step == 0 else max(0, math.ceil(min((limit - start) / step, _CLAMP)))


def _pad(node: Node, inputs: Sequence[Computed | None]) -> int | None:
    pads = node.integer_lists.get("pads", _value(inputs, 1))
    if pads is None:
        return None
    added = [max(0, int(pad)) for pad in pads if pad is not None]
    first = inputs[0] if inputs else None
    if first is None or not first.constant:
        return math.prod(1 + pad for pad in added)
    if first.shape is not None and len(pads) == len(added) == 2 * len(first.shape):
        both = zip(added[: len(first.shape)], added[len(first.shape) :], strict=True)
        return math.prod(size + sum(pad) for size, pad in zip(first.shape, both, strict=True))
    return first.elements * math.prod(1 + pad for pad in added)


def _resize(node: Node, inputs: Sequence[Computed | None]) -> int | None:
    sizes = _product(_value(inputs, 3))
    if sizes is not None:
        return sizes
    scales = _value(inputs, 2)
    if scales is None or any(scale is None for scale in scales):
        return None
    return math.ceil(min(_own_elements(inputs) * math.prod(max(0.0, s) for s in scales if s), _CLAMP))


def _one_hot(node: Node, inputs: Sequence[Computed | None]) -> int | None:
    depth = _product(_value(inputs, 1))
    return None if depth is None else depth * _own_elements(inputs)


_GROWING: dict[str, Callable[[Node, Sequence[Computed | None]], int | None]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Pad": _pad,
    "Resize": _resize,
    "OneHot": _one_hot,
}


def _values(node: Node, inputs: Sequence[Computed | None]) -> Values | None:
    """The numbers of a short result as far as they are known for certain."""
    kind = node.kind
    if any(value is not None and value.shape is not None and len(value.shape) > 1 for value in inputs):
        if kind != "Shape":
            return None  # positions in a matrix are not those of its numbers
    elif kind in _ARITHMETIC and len(inputs) != 2:
        return None
    if kind == "Concat":
        parts = [(None,) if value is None or value.values is None else value.values for value in inputs]
        return tuple(one for part in parts for one in part)
    first = _value(inputs, 0)
    if kind == "Shape":
        if {"start", "end"} & node.integers.keys():
            return None
        constant = inputs[0] if inputs else None
        return constant.shape if constant is not None and constant.constant else None
    if first is None:
        return None
    if kind == "Cast" and not _keeps_numbers(node, first):
        return None
    if kind in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten"):
        return first
    second = _value(inputs, 1)
    if kind in _ARITHMETIC:
        return _arithmetic(_ARITHMETIC[kind], first, second)
    if kind == "Gather" and second is not None:
        return _picked(first, second)
    return None


def _keeps_numbers(node: Node, values: Values) -> bool:
    """Whether a cast changes none of the values: to a signed integer that holds them all."""
    return node.integers.get("to") in (_INT32, _INT64) and all(
        value is None or (value == int(value) and abs(value) < _EXACT) for value in values
    )


def _picked(values: Values, at: Values) -> Values | None:
    found: list[float | None] = []
    for index in at:
        if index is None or not -len(values) <= index < len(values):
            return None
        found.append(values[int(index)])
    return tuple(found)


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: (a // b if isinstance(a, int) else a / b) if b else 0,
    "Max": max,
    "Min": min,
}


def _arithmetic(
    compute: Callable[[float, float], float], first: Values, second: Values | None
) -> Values | None:
    if second is None or not first or not second:
        return None
    length = max(len(first), len(second))
    if not {len(first), len(second)} <= {1, length}:
        return None
    first, second = (values * (length // len(values)) for values in (first, second))
    result: list[float | None] = []
    for a, b in zip(first, second, strict=True):
        value = None if a is None or b is None else compute(a, b)
        # Beyond that a machine's integers wrap around.
        result.append(value if value is not None and abs(value) < _EXACT else None)
    return tuple(result)
