"""Graphs as trees of nodes that can be changed, read from an ONNX file and written again. What is not changed
means the same afterwards.

Knows which fields of onnx.proto3 are nodes, names, attributes, weights and types, and where names are used.
Knows nothing of operators.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import Counter
from collections.abc import Iterator

from phirt.bundle.wire import Span, Value, Wire, field, integer_of, signed, span_of

# Field numbers of onnx.proto3.
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INTEGER, _ATTRIBUTE_STRING = 1, 2, 3, 4
_ATTRIBUTE_GRAPH, _ATTRIBUTE_TYPE = 6, 20
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIMENSION = _DIMENSION_VALUE = 1
_INITIALIZER_DIMENSION, _INITIALIZER_NAME, _INITIALIZER_RAW, _INITIALIZER_PLACES = 1, 8, 9, (13, 14)
_TYPE_FLOAT, _TYPE_INT, _TYPE_STRING = 1, 2, 3  # of AttributeProto.AttributeType

_SMALL = 256  # bytes of a weight with its name

Scalar = int | float | bytes
# The element type of an input and its last dimension: 0 where none is said.
TensorType = tuple[int, int]


class Node:
    """A node. Empty names are inputs and outputs that are left out; `attributes` are its numbers and strings,
    to be read, `branches` the graphs that attributes hold, by their names.
    """

    def __init__(self, kind: bytes, domain: bytes, name: bytes = b"") -> None:
        self.kind, self.domain, self.name = kind, domain, name
        self.inputs: list[bytes] = []
        self.outputs: list[bytes] = []
        self.attributes: dict[bytes, Scalar] = {}
        self.branches: dict[bytes, Graph] = {}
        self.graphs: dict[int, Graph] = {}  # all of them, by where they were read
        self._added: list[bytes] = []  # attributes, as they are written
        self._read: tuple[Wire, Span] | None = None
        self._known: object = None  # what was read, by which a change is seen

    @staticmethod
    def read(wire: Wire, span: Span) -> Node:
        """The node at `span`."""
        node = Node(b"", b"")
        for number, value in wire.fields(span):
            if number == _NODE_INPUT:
                node.inputs.append(wire.bytes_of(value))
            elif number == _NODE_OUTPUT:
                node.outputs.append(wire.bytes_of(value))
            elif number == _NODE_NAME:
                node.name = wire.bytes_of(value)
            elif number == _NODE_KIND:
                node.kind = wire.bytes_of(value)
            elif number == _NODE_DOMAIN:
                node.domain = wire.bytes_of(value)
            elif number == _NODE_ATTRIBUTE:
                node._read_attribute(wire, span_of(value))
        node._read, node._known = (wire, span), node._state()
        return node

    def _state(self) -> object:
        return self.kind, self.domain, self.name, tuple(self.inputs), tuple(self.outputs)

    def _read_attribute(self, wire: Wire, span: Span) -> None:
        name, kind = b"", 0
        integer, number_found, text = 0, 0.0, b""
        graph: Graph | None = None
        for number, value in wire.fields(span):
            if number == _ATTRIBUTE_NAME:
                name = wire.bytes_of(value)
            elif number == _ATTRIBUTE_TYPE:
                kind = integer_of(value)
            elif number == _ATTRIBUTE_INTEGER:
                integer = signed(integer_of(value))
            elif number == _ATTRIBUTE_FLOAT:
                number_found = _float_of(value)
            elif number == _ATTRIBUTE_STRING:
                text = wire.bytes_of(value)
            elif number == _ATTRIBUTE_GRAPH:
                graph = self.graphs[span_of(value)[0]] = Graph(wire, span_of(value))
        values: dict[int, Scalar] = {_TYPE_INT: integer, _TYPE_FLOAT: number_found, _TYPE_STRING: text}
        if kind in values:
            self.attributes[name] = values[kind]  # one that is not written is 0 or empty
        if graph is not None:
            self.branches[name] = graph

    def set_attribute(self, name: bytes, value: Scalar) -> None:
        """Adds a number that the node does not have as an attribute."""
        assert name not in self.attributes and not isinstance(value, bytes)
        is_float = isinstance(value, float)
        kind = field(_ATTRIBUTE_TYPE, _TYPE_FLOAT if is_float else _TYPE_INT)
        number = field(_ATTRIBUTE_FLOAT if is_float else _ATTRIBUTE_INTEGER, value)
        self._added.append(field(_NODE_ATTRIBUTE, field(_ATTRIBUTE_NAME, name) + number + kind))
        self.attributes[name] = value

    def input(self, index: int) -> bytes:
        """The name of an input, empty where there is none."""
        return self.inputs[index] if index < len(self.inputs) else b""

    def written(self) -> bytes:
        """As a message."""
        if self._read is not None and not self.graphs and not self._added and self._known == self._state():
            wire, span = self._read
            return wire.bytes_of(span)
        parts = [field(_NODE_INPUT, name) for name in self.inputs]
        parts += [field(_NODE_OUTPUT, name) for name in self.outputs]
        texts = ((_NODE_NAME, self.name), (_NODE_KIND, self.kind), (_NODE_DOMAIN, self.domain))
        parts += [field(number, text) for number, text in texts if text]
        return b"".join([*parts, *self._written_as_read(), *self._added])

    def _written_as_read(self) -> Iterator[bytes]:
        """Attributes and what else nobody changes here, but the graphs in attributes."""
        if self._read is None:
            return
        wire, span = self._read
        changing = (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND, _NODE_DOMAIN)
        for number, value in wire.fields(span):
            if number == _NODE_ATTRIBUTE and self.graphs:
                parts = (
                    field(inner, self.graphs[span_of(part)[0]].written())
                    if inner == _ATTRIBUTE_GRAPH
                    else wire.again(inner, part)
                    for inner, part in wire.fields(span_of(value))
                )
                yield field(number, b"".join(parts))
            elif number not in changing:
                yield wire.again(number, value)


class Graph:
    """A graph; the weights that it holds are kept as they are written."""

    def __init__(self, wire: Wire, span: Span) -> None:
        self.nodes: list[Node] = []
        self.initializers: dict[bytes, bytes] = {}
        self.inputs: dict[bytes, TensorType] = {}
        self.outputs: list[bytes] = []
        self._wire = wire
        self._others: list[tuple[int, Value]] = []
        for number, value in wire.fields(span):
            if number == _GRAPH_NODE:
                self.nodes.append(Node.read(wire, span_of(value)))
                continue
            if number == _GRAPH_INITIALIZER:
                self._read_weight(span_of(value))
                continue
            if number == _GRAPH_INPUT:
                name, found = _input_type(wire, span_of(value))
                self.inputs[name] = found
            elif number == _GRAPH_OUTPUT:
                self.outputs.append(_name_in(wire, span_of(value), _VALUE_NAME))
            self._others.append((number, value))

    def _read_weight(self, span: Span) -> None:
        name = _name_in(self._wire, span, _INITIALIZER_NAME)
        if name in self.initializers:
            raise ValueError("two weights of one name")
        self.initializers[name] = self._wire.bytes_of(span)

    def small_constants(self) -> Iterator[tuple[bytes, bytes]]:
        """Names and bytes of weights in the graph itself that are a number or a short row of them."""
        for name, tensor in self.initializers.items():
            if len(tensor) >= _SMALL:
                continue
            wire = Wire(tensor, len(tensor))
            parts = list(wire.fields(wire.whole()))
            dimensions = [
                size for n, part in parts if n == _INITIALIZER_DIMENSION for size in wire.varints(part)
            ]
            raw = [wire.bytes_of(part) for n, part in parts if n == _INITIALIZER_RAW]
            is_inside = not any(n in _INITIALIZER_PLACES for n, _ in parts)
            if len(raw) == 1 and len(dimensions) <= 1 and is_inside:
                yield name, raw[0]

    def written(self) -> bytes:
        """As a message."""
        nodes = [field(_GRAPH_NODE, node.written()) for node in self.nodes]
        weights = [field(_GRAPH_INITIALIZER, tensor) for tensor in self.initializers.values()]
        return b"".join([*nodes, *weights, *(self._wire.again(*other) for other in self._others)])

    def all_graphs(self) -> Iterator[Graph]:
        """This one and those inside it."""
        yield self
        for node in self.nodes:
            for graph in node.graphs.values():
                yield from graph.all_graphs()

    def defined(self) -> Iterator[bytes]:
        """The names of all values of this graph and of those inside it."""
        for graph in self.all_graphs():
            yield from graph.inputs
            yield from graph.initializers
            for node in graph.nodes:
                yield from filter(None, node.outputs)

    def used(self) -> Iterator[bytes]:
        """The name of a value each time that this graph or one inside it uses it."""
        for graph in self.all_graphs():
            yield from graph.outputs
            for node in graph.nodes:
                yield from filter(None, node.inputs)


@dataclasses.dataclass
class Model:
    """The graphs of a file, of which there is one if it is no strange one, and its other fields."""

    graphs: list[Graph]
    others: list[bytes]

    @staticmethod
    def read(data: bytes) -> Model:
        """Raises ValueError where the bytes are no model."""
        wire = Wire(data, len(data))  # as many fields as there may be: each takes two bytes
        model = Model([], [])
        for number, value in wire.fields(wire.whole()):
            if number == _MODEL_GRAPH:
                model.graphs.append(Graph(wire, span_of(value)))
            else:
                model.others.append(wire.again(number, value))
        return model

    def written(self) -> bytes:
        """As a file."""
        return b"".join([*(field(_MODEL_GRAPH, graph.written()) for graph in self.graphs), *self.others])

    def add_domain(self, domain: bytes) -> None:
        """Has nodes of this domain, in its first version."""
        self.others.append(field(_MODEL_OPSET, field(_OPSET_DOMAIN, domain) + field(_OPSET_VERSION, 1)))

    def definitions(self) -> Counter[bytes]:
        """How often a name is given to a value."""
        return Counter(name for graph in self.graphs for name in graph.defined())


def _float_of(value: Value) -> float:
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("something else where a float belongs")
    number: float = struct.unpack("<f", value)[0]
    return number


def _name_in(wire: Wire, span: Span, number_of_name: int) -> bytes:
    name = b""
    for number, value in wire.fields(span):
        if number == number_of_name:
            name = wire.bytes_of(value)
    return name


def _input_type(wire: Wire, span: Span) -> tuple[bytes, TensorType]:
    name, kind = b"", (0, 0)
    for number, part in wire.fields(span):
        if number == _VALUE_NAME:
            name = wire.bytes_of(part)
        elif number == _VALUE_TYPE:
            kind = _tensor_type(wire, span_of(part))
    return name, kind


def _tensor_type(wire: Wire, span: Span) -> TensorType:
    element = size = 0
    for number, value in wire.fields(span):
        if number != _TYPE_TENSOR:
            continue
        for inner, part in wire.fields(span_of(value)):
            if inner == _TENSOR_ELEMENT:
                element = integer_of(part)
            elif inner == _TENSOR_SHAPE:
                size = _last_dimension(wire, span_of(part))
    return element, size


def _last_dimension(wire: Wire, shape: Span) -> int:
    """0 where none is said."""
    size = 0
    for number, dimension in wire.fields(shape):
        if number == _SHAPE_DIMENSION:
            values = [value for n, value in wire.fields(span_of(dimension)) if n == _DIMENSION_VALUE]
            size = integer_of(values[0]) if values else 0
    return size
