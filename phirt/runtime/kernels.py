"""Faster products of quantized weights and faster attention on the CPU, where the package phirt-kernels is
installed: its operators take the place of onnxruntime's in a graph that is about to be opened. The bundle
stays as it is.

Knows where the package's library is and which nodes it computes as well as onnxruntime does: MatMulNBits over
int8 activations, GroupQueryAttention over float32 and int8 caches. Knows nothing of how; nothing of sessions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phirt.bundle.wire import Span, Value, Wire, integer_of, span_of

VARIABLE = "PHIRT_KERNELS"  # "off", or the instruction set that is to be used
_OFF, _PLAIN = "off", "generic"
_PACKAGE = "phirt_kernels"
# As long as each other: a node changes its domain in place.
_THEIRS, _OURS = b"com.microsoft", b"phirt.kernels"
assert len(_THEIRS) == len(_OURS)
# ModelProto.opset_import = {domain, version: 1}.
_OPSET = bytes((0x42, len(_OURS) + 4, 0x0A, len(_OURS))) + _OURS + bytes((0x10, 0x01))
# Field numbers of onnx.proto3.
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INPUT = 7, 1, 11
_NODE_INPUT, _NODE_OUTPUT, _NODE_KIND, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INTEGER, _ATTRIBUTE_STRING, _ATTRIBUTE_GRAPH = 1, 2, 3, 4, 6
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIMENSION = _DIMENSION_VALUE = 1
_FLOAT32, _INT8 = 1, 3  # of TensorProto.DataType
_INT8_ACTIVATIONS = 4  # accuracy_level

_log = logging.getLogger("phirt.kernels")


@functools.cache
def library() -> Path | None:
    """The library of operators; None where it is not installed, switched off, or no faster on this CPU, which
    is logged.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == _OFF or importlib.util.find_spec(_PACKAGE) is None:
        return None
    path: Path | str = _PACKAGE
    try:
        path = Path(importlib.import_module(_PACKAGE).library_path())
        found = _instructions_of(path)
    except (ImportError, OSError, AttributeError) as error:
        _log.warning("phirt-kernels is not used: %s cannot be loaded: %s", path, error)
        return None
    if found == _PLAIN:
        asked = f"{VARIABLE} is {_PLAIN!r}" if wanted == _PLAIN else "it has no instructions for this CPU"
        _log.warning("phirt-kernels is not used: %s", asked)
        return None
    if wanted not in ("", found):
        _log.warning("%s is %r, which this CPU has not; phirt-kernels uses %s", VARIABLE, wanted, found)
    _log.debug("phirt-kernels computes with %s", found)
    return path


def instructions() -> str | None:
    """The instruction set that the library computes with; None where there is no library to be used."""
    path = library()
    return None if path is None else _instructions_of(path)


def _instructions_of(path: Path) -> str:
    named = ctypes.CDLL(str(path)).phirt_kernels_name
    named.restype = ctypes.c_char_p
    name: bytes = named()
    return name.decode()


def with_kernels(graph: bytes) -> bytes | None:
    """The graph with phirt-kernels' operators in the place of onnxruntime's; None where there is none that it
    could take, or where a part is damaged that the check of graphs does not read. The graph has been checked.
    """
    changed = bytearray(graph)
    wire = Wire(graph, len(graph))  # as many fields as there may be: each takes two bytes, and is read twice
    count = 0
    try:
        for number, value in wire.fields(wire.whole()):
            if number == _MODEL_GRAPH:
                count += _replace(wire, span_of(value), changed, _input_types(wire, span_of(value)))
    except ValueError as error:
        _log.warning("phirt-kernels is not used: a graph cannot be read: %s", error)
        return None
    return bytes(changed) + _OPSET if count else None


@dataclass
class _Node:
    """What of a node decides whether it is replaced. Empty names are inputs and outputs that are left out."""

    kind: bytes = b""
    domain: Span | None = None
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    attributes: dict[bytes, int | float | bytes] = field(default_factory=dict)
    graphs: list[Span] = field(default_factory=list)


# By name the element type of an input, and its last dimension: 0 where none is said.
_Types = Mapping[bytes, tuple[int, int]]


# Of MatMulNBits. A graph that orders its groups (g_idx) is onnxruntime's.
_SIZES = frozenset((b"N", b"K", b"bits", b"block_size", b"accuracy_level"))
_GROUPS = 4


def _takes_product(node: _Node, _: _Types) -> bool:
    if node.attributes.get(b"accuracy_level") != _INT8_ACTIVATIONS or not _SIZES.issuperset(node.attributes):
        return False
    return not any(node.inputs[_GROUPS : _GROUPS + 1])


# Attributes of GroupQueryAttention that the operator knows; others, by what value they do nothing.
_KNOWN = frozenset((b"num_heads", b"kv_num_heads", b"scale", b"do_rotary", b"local_window_size"))
_QUANTIZED = (b"k_quant_type", b"v_quant_type", b"kv_cache_bit_width")
_WITHOUT_EFFECT: Mapping[bytes, int] = {
    b"softcap": 0, b"rotary_interleaved": 0, b"smooth_softmax": 0, b"qk_output": 0, b"causal": 1,
    b"sliding_window_cache": 0,
}  # fmt: skip
_PAST = (3, 4)
_HEAD_DIMS = range(8, 513, 8)
_BIAS, _SINKS, _MOST_INPUTS = 10, 11, 14


def _takes_attention(node: _Node, types: _Types) -> bool:
    kinds = [node.attributes.get(name, b"NONE") for name in _QUANTIZED[:2]]
    is_quantized = kinds != [b"NONE", b"NONE"]
    if is_quantized and (b"NONE" in kinds or node.attributes.get(_QUANTIZED[2]) != 8):
        return False
    for name, value in node.attributes.items():
        if name not in _KNOWN and name not in _QUANTIZED and value != _WITHOUT_EFFECT.get(name):
            return False
    inputs = node.inputs
    if not max(_PAST) < len(inputs) <= _MOST_INPUTS or any(inputs[_BIAS : _SINKS + 1]):
        return False
    if node.attributes.get(b"do_rotary") != 1:  # without, heads may have sizes that the operator lacks
        return False
    stored = _INT8 if is_quantized else _FLOAT32
    pasts = [types.get(inputs[i], (0, 0)) for i in _PAST]
    if any(element != stored or size not in _HEAD_DIMS for element, size in pasts):
        return False
    return len(node.outputs) == 3 and all(node.outputs)


_TAKES: Mapping[bytes, Callable[[_Node, _Types], bool]] = {
    b"MatMulNBits": _takes_product,
    b"GroupQueryAttention": _takes_attention,
}


def _replace(wire: Wire, graph: Span, changed: bytearray, types: _Types) -> int:
    """Gives nodes of a graph, and of graphs inside it, their new domain. Returns how many."""
    count = 0
    for number, value in wire.fields(graph):
        if number != _GRAPH_NODE:
            continue
        node = _read_node(wire, span_of(value))
        count += sum(_replace(wire, inside, changed, types) for inside in node.graphs)
        takes = _TAKES.get(node.kind)
        if takes is None or node.domain is None or wire.bytes_of(node.domain) != _THEIRS:
            continue
        if takes(node, types):
            changed[slice(*node.domain)] = _OURS
            count += 1
    return count


def _read_node(wire: Wire, span: Span) -> _Node:
    node = _Node()
    for number, value in wire.fields(span):
        if number == _NODE_KIND:
            node.kind = wire.bytes_of(value)
        elif number == _NODE_DOMAIN:
            node.domain = span_of(value)
        elif number == _NODE_INPUT:
            node.inputs.append(wire.bytes_of(value))
        elif number == _NODE_OUTPUT:
            node.outputs.append(wire.bytes_of(value))
        elif number == _NODE_ATTRIBUTE:
            _read_attribute(wire, span_of(value), node)
    return node


def _read_attribute(wire: Wire, span: Span, node: _Node) -> None:
    name = b""
    found: int | float | bytes | None = None
    for number, value in wire.fields(span):
        if number == _ATTRIBUTE_NAME:
            name = wire.bytes_of(value)
        elif number == _ATTRIBUTE_INTEGER:
            found = integer_of(value)
        elif number == _ATTRIBUTE_FLOAT:
            found = _float_of(value)
        elif number == _ATTRIBUTE_STRING:
            found = wire.bytes_of(value)
        elif number == _ATTRIBUTE_GRAPH:
            node.graphs.append(span_of(value))
    if found is not None:
        node.attributes[name] = found


def _float_of(value: Value) -> float:
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("something else where a float belongs")
    number: float = struct.unpack("<f", value)[0]
    return number


def _input_types(wire: Wire, graph: Span) -> dict[bytes, tuple[int, int]]:
    """Of a graph's inputs that are tensors."""
    types: dict[bytes, tuple[int, int]] = {}
    for number, value in wire.fields(graph):
        if number != _GRAPH_INPUT:
            continue
        name, kind = b"", (0, 0)
        for inner, part in wire.fields(span_of(value)):
            if inner == _VALUE_NAME:
                name = wire.bytes_of(part)
            elif inner == _VALUE_TYPE:
                kind = _tensor_type(wire, span_of(part))
        types[name] = kind
    return types


def _tensor_type(wire: Wire, span: Span) -> tuple[int, int]:
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
