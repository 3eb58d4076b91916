"""Reads what an ONNX file is made of without the package `onnx`: nodes, their graphs inside, which weights
there are and where they lie. Time and memory are bounded, whatever the file is.

Knows the fields of onnx.proto3 that matter here, not how they are written (`wire`). Weights themselves
are neither read nor looked for, but for short lists of numbers, which say shapes. What a graph may do is
`graph_check`'s matter.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path

from phirt.bundle.wire import Span, Value, Wire, integer_of, signed, span_of
from phirt.errors import BundleError

_MAX_BYTES = 64 << 20  # of the file without external data
_MAX_FIELDS = 400_000  # a decoder of 32 layers has some 60,000
_FIELDS_OF_A_NODE = 16  # what one costs to read even if it is empty
_MAX_NESTING = 3  # of graphs in graphs; the exporter nests two
_MAX_DIMS = 16
_MAX_DIMENSION = 1 << 48
_MOST_REMEMBERED = 64  # bytes of an attribute
_MOST_VALUES = 64  # of a tensor that are read: shapes, repeats, pads
# Bits of an element by TensorProto.DataType; those that nothing here may have are left out (strings are 8).
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
        16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}  # fmt: skip
_NUMBERS = {1: "f", 6: "i", 7: "q", 11: "d"}  # struct's letters for those whose values are read
# Field numbers of TensorProto that hold typed values, and the fewest bytes that one value takes there; where
# those are more than one, it takes no more.
_TYPED = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Weight:
    """A constant tensor: its shape, the bytes that it takes, where they lie, its values if they are few.

    `data_type` is TensorProto.DataType. `held` are the bytes that the file itself holds, at least; a tensor
    with external data has a `location`.
    """

    name: str
    shape: tuple[int, ...]
    data_type: int
    held: int = 0
    location: str | None = None
    offset: int = 0
    length: int | None = None
    values: tuple[float, ...] | None = None

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all values; 0 for types of no fixed size."""
        return (self.elements * BITS.get(self.data_type, 0) + 7) // 8


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One node: its kind, names of inputs and outputs, attributes of numbers, constants and graphs in it.

    `graphs` are in the file's order; `unknown` names attributes of a kind that is not read (text, types).
    """

    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]
    integer_lists: dict[str, tuple[int, ...]]
    tensors: tuple[Weight, ...]
    graphs: tuple[Graph, ...]
    unknown: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in their order, initializers by name, names of inputs; a graph inside another also sees what is
    outside. `other` are field numbers of a GraphProto that are not read, such as sparse initializers.
    """

    nodes: tuple[Node, ...]
    weights: dict[str, Weight]
    inputs: tuple[str, ...]
    other: frozenset[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A whole file: its main graph, and field numbers of a ModelProto that are not read (25: functions)."""

    graph: Graph
    other: frozenset[int]


def read_model(path: Path) -> Model:
    """What an ONNX file holds. Raises BundleError when it is no ONNX file, larger than 64 MB, made of too
    many pieces or nested too deep.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{path} has more than {_MAX_BYTES} bytes; keep weights in external data")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; export the bundle again") from error
    try:
        return _Reader(data).model()
    except (ValueError, struct.error) as error:
        raise BundleError(f"{path} is no graph that can be read: {error}; run 'phirt verify'") from error


def read_graph(path: Path) -> Graph:
    """The main graph of an ONNX file. Raises BundleError as `read_model` does."""
    return read_model(path).graph


class _Reader:
    """Reads one file's messages; nothing is copied that is not kept."""

    def __init__(self, data: bytes) -> None:
        self._wire = Wire(data, _MAX_FIELDS)
        # Most attributes and places of weights are the same bytes again and again.
        self._integers: dict[bytes, tuple[str, int]] = {}
        self._entries: dict[bytes, tuple[str, str]] = {}

    def model(self) -> Model:
        """The whole file."""
        graphs, other = [], set()
        for number, value in self._wire.fields(self._wire.whole()):
            if number == 7:
                graphs.append(span_of(value))
            else:
                other.add(number)
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs")
        return Model(self._graph(graphs[0], 0), frozenset(other))

    def _graph(self, span: Span, depth: int) -> Graph:
        if depth > _MAX_NESTING:
            raise ValueError(f"it nests graphs more than {_MAX_NESTING} deep")
        nodes, weights, inputs, other = [], {}, [], set()
        for number, value in self._wire.fields(span):
            if number == 1:
                self._wire.charge(_FIELDS_OF_A_NODE)
                nodes.append(self._node(span_of(value), depth))
            elif number == 5:
                self._wire.charge(_FIELDS_OF_A_NODE)
                weight = self._weight(span_of(value))
                if weight.name in weights:
                    raise ValueError(f"two initializers are named {weight.name[:80]!r}")
                weights[weight.name] = weight
            elif number == 11:
                inputs.append(self._first_text(span_of(value)))
            else:
                other.add(number)
        return Graph(tuple(nodes), weights, tuple(inputs), frozenset(other))

    def _first_text(self, span: Span) -> str:
        """Field 1 of a ValueInfoProto: its name."""
        return next((self._wire.text(value) for number, value in self._wire.fields(span) if number == 1), "")

    def _node(self, span: Span, depth: int) -> Node:
        kind, domain = "", ""
        inputs: list[str] = []
        outputs: list[str] = []
        attributes = _Attributes()
        for number, value in self._wire.fields(span):
            if number == 1:
                inputs.append(self._wire.text(value))
            elif number == 2:
                outputs.append(self._wire.text(value))
            elif number == 4:
                kind = self._wire.text(value)
            elif number == 5:
                self._attribute(span_of(value), attributes, depth)
            elif number == 7:
                domain = self._wire.text(value)
        return Node(
            kind, domain, tuple(inputs), tuple(outputs), attributes.integers, attributes.integer_lists,
            tuple(attributes.tensors), tuple(attributes.graphs), tuple(attributes.unknown),
        )  # fmt: skip

    def _attribute(self, span: Span, found: _Attributes, depth: int) -> None:
        content = self._wire.data[span[0] : min(span[1], span[0] + _MOST_REMEMBERED)]
        if content in self._integers:
            found.add(*self._integers[content])
            return
        name = ""
        integer: int | None = None
        integers: list[int] = []
        held = len(found.tensors) + len(found.graphs)
        unread = len(found.unknown)
        for number, value in self._wire.fields(span):
            if number == 1:
                name = self._wire.text(value)
            elif number == 3:
                integer = signed(integer_of(value))
            elif number == 5:
                found.tensors.append(self._weight(span_of(value)))
            elif number == 6:
                found.graphs.append(self._graph(span_of(value), depth + 1))
            elif number == 8:
                integers += self._wire.varints(value)
            elif number == 11:  # of no operator that is accepted, and nothing here would bound them
                raise ValueError(f"the attribute {name[:80]!r} is a list of graphs")
            elif number not in (2, 7, 13, 20):  # floats, a note, what kind it is
                found.unknown.append(f"{name} ({number})")
        inside = len(found.tensors) + len(found.graphs) - held
        if inside > 1:  # readers would merge them
            raise ValueError(f"the attribute {name[:80]!r} has more than one value")
        found.add(name, integer)
        if integers:
            found.integer_lists[name] = tuple(integers)
        is_plain = not inside and unread == len(found.unknown) and len(content) < _MOST_REMEMBERED
        if integer is not None and not integers and is_plain:
            self._integers[content] = (name, integer)

    def _weight(self, span: Span) -> Weight:
        name, data_type = "", 0
        shape: list[int] = []
        raw: Span | None = None
        typed: list[tuple[int, Value]] = []
        external: dict[str, str] = {}
        is_external = False
        for number, value in self._wire.fields(span):
            if number == 1:
                shape += self._wire.varints(value)
                if len(shape) > _MAX_DIMS:
                    raise ValueError("a tensor has too many dimensions")
            elif number == 2:
                data_type = integer_of(value)
            elif number == 8:
                name = self._wire.text(value)
            elif number == 9:
                raw = span_of(value)
            elif number == 13:
                self._entry(span_of(value), external)
            elif number == 14:
                place = integer_of(value)
                if place not in (0, 1):  # others read 32 bits of it
                    raise ValueError(f"initializer {name[:80]!r} lies at {place}, expected 0 or 1")
                is_external = place == 1
            elif number in _TYPED:
                typed.append((number, value))
        if not all(0 <= size < _MAX_DIMENSION for size in shape):
            raise ValueError(f"initializer {name[:80]!r} has no sensible shape")
        if is_external:
            length = external.get("length")
            return Weight(
                name, tuple(shape), data_type, 0, external.get("location", ""),
                int(external.get("offset", "0")), None if length is None else int(length),
            )  # fmt: skip
        bits = BITS.get(data_type, 0)
        held = sum(_typed_bytes(number, value, bits) for number, value in typed)
        weight = Weight(name, tuple(shape), data_type, held if raw is None else raw[1] - raw[0])
        if weight.elements <= _MOST_VALUES and data_type in _NUMBERS:
            return dataclasses.replace(weight, values=self._values(weight, raw, typed))
        return weight

    def _entry(self, span: Span, into: dict[str, str]) -> None:
        """Reads a StringStringEntryProto."""
        content = self._wire.data[span[0] : span[1]]
        entry = self._entries.get(content)
        if entry is None:
            texts = {number: self._wire.text(value) for number, value in self._wire.fields(span)}
            self._entries[content] = entry = (texts.get(1, ""), texts.get(2, ""))
        into[entry[0]] = entry[1]

    def _values(
        self, weight: Weight, raw: Span | None, typed: list[tuple[int, Value]]
    ) -> tuple[float, ...] | None:
        """The few values of a tensor of numbers, or None where they are not all there."""
        letter = _NUMBERS[weight.data_type]
        if raw is None:
            packed = [value for number, value in typed if number in (4, 10) and isinstance(value, tuple)]
            if packed:
                raw = packed[0]
            else:
                whole = [value for number, value in typed if number in (5, 7)]
                values = [one for value in whole for one in self._wire.varints(value)]
                return tuple(values) if len(values) == weight.elements else None
        if raw[1] - raw[0] != weight.nbytes:
            return None
        return struct.unpack_from(f"<{weight.elements}{letter}", self._wire.data, raw[0])


@dataclasses.dataclass
class _Attributes:
    """What one node's attributes hold."""

    names: set[str] = dataclasses.field(default_factory=set)
    integers: dict[str, int] = dataclasses.field(default_factory=dict)
    integer_lists: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    tensors: list[Weight] = dataclasses.field(default_factory=list)
    graphs: list[Graph] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, integer: int | None) -> None:
        """Notes an attribute, which may be there only once: readers take the first, or the last."""
        if name in self.names:
            raise ValueError(f"the attribute {name[:80]!r} is there twice")
        self.names.add(name)
        if integer is not None:
            self.integers[name] = integer


def _typed_bytes(number: int, value: Value, bits: int) -> int:
    """The most bytes of values that a field of typed data can stand for."""
    if not isinstance(value, tuple):
        if _TYPED[number] != (len(value) if isinstance(value, bytes) else 1):
            raise ValueError(f"typed data ({number}) of another kind")
        return bits // 8
    return (value[1] - value[0]) // _TYPED[number] * max(1, bits // 8)
