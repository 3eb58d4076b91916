"""Reads which weights an ONNX file's nodes take, and their sizes, without the package `onnx`.

Knows the wire format of protocol buffers and the few fields of onnx.proto3 that name nodes, subgraphs and
initializers. Weights themselves are neither read nor looked for; what onnxruntime would refuse is not judged
here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

from phirt.errors import BundleError

_MAX_BYTES = 1 << 29  # of the file without external data
_MAX_DEPTH = 16  # of graphs in graphs
_MAX_DIMS = 16
# Bits of an element by TensorProto.DataType; types that no weight has are left out.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
         17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weight:
    """A named initializer: its shape, and the bytes that it takes."""

    name: str
    shape: tuple[int, ...]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Node:
    """One node: its kind, names of inputs and outputs, integer attributes, graphs inside it (branches)."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]
    graphs: tuple[Graph, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in their order, and initializers by name; a graph inside another also sees those outside."""

    nodes: tuple[Node, ...]
    weights: dict[str, Weight]


def read_graph(path: Path) -> Graph:
    """The main graph of an ONNX file. Raises BundleError when it is no ONNX file or larger than 512 MB."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{path} has more than {_MAX_BYTES} bytes; keep weights in external data")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; export the bundle again") from error
    try:
        graphs = [value for number, value in _fields(data) if number == 7 and isinstance(value, memoryview)]
        if len(graphs) != 1:
            raise ValueError(f"{len(graphs)} graphs")
        return _graph(graphs[0], _MAX_DEPTH)
    except (ValueError, IndexError) as error:
        raise BundleError(f"{path} is no ONNX file that can be read: {error}; run 'phirt verify'") from error


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field: an integer, or the bytes of a string or message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError("a field reaches past the end")
        if kind == 2:
            yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("an integer has no end")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer where a message or a string belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8")  # UnicodeDecodeError is a ValueError


def _graph(data: memoryview, depth: int) -> Graph:
    if depth == 0:
        raise ValueError(f"graphs are nested more than {_MAX_DEPTH} deep")
    nodes, weights = [], {}
    for number, value in _fields(data):
        if number == 1:
            nodes.append(_node(_message(value), depth))
        elif number == 5:
            weight = _weight(_message(value))
            weights[weight.name] = weight
    return Graph(tuple(nodes), weights)


def _node(data: memoryview, depth: int) -> Node:
    kind, inputs, outputs = "", [], []
    integers: dict[str, int] = {}
    graphs: list[Graph] = []
    for number, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            kind = _text(value)
        elif number == 5:
            _attribute(_message(value), integers, graphs, depth)
    return Node(kind, tuple(inputs), tuple(outputs), integers, tuple(graphs))


def _attribute(data: memoryview, integers: dict[str, int], graphs: list[Graph], depth: int) -> None:
    name, integer = "", None
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 3 and isinstance(value, int):
            integer = value
        elif number == 6:
            graphs.append(_graph(_message(value), depth - 1))
    if integer is not None:
        integers[name] = integer


def _weight(data: memoryview) -> Weight:
    name, kind = "", 0
    shape: list[int] = []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            shape.append(value)
        elif number == 1:  # all dimensions in one field
            at, packed = 0, _message(value)
            while at < len(packed):
                dimension, at = _varint(packed, at)
                shape.append(dimension)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
    if len(shape) > _MAX_DIMS or any(size >= 1 << 48 for size in shape):
        raise ValueError(f"initializer {name[:80]!r} has no sensible shape")
    return Weight(name, tuple(shape), (math.prod(shape) * _BITS.get(kind, 0) + 7) // 8)
