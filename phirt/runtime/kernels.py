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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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

_MOST_BITS = 63  # of an integer, but for those of its last byte

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
    could take. The graph has been checked.
    """
    changed = bytearray(graph)
    view = memoryview(graph)
    count = 0
    for number, begin, end in _fields(view, 0, len(view)):
        if number == _MODEL_GRAPH:
            count += _replace(view, begin, end, changed, _input_types(view, begin, end))
    return bytes(changed) + _OPSET if count else None


@dataclass
class _Node:
    """What of a node decides whether it is replaced. Empty names are inputs and outputs that are left out."""

    kind: bytes = b""
    domain: tuple[int, int] | None = None
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    attributes: dict[bytes, int | float | bytes] = field(default_factory=dict)
    graphs: list[tuple[int, int]] = field(default_factory=list)


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


def _replace(view: memoryview, begin: int, end: int, changed: bytearray, types: _Types) -> int:
    """Gives nodes of a graph, and of graphs inside it, their new domain. Returns how many."""
    count = 0
    for number, first, last in _fields(view, begin, end):
        if number != _GRAPH_NODE:
            continue
        node = _read_node(view, first, last)
        count += sum(_replace(view, *graph, changed, types) for graph in node.graphs)
        takes = _TAKES.get(node.kind)
        if takes is None or node.domain is None or view[slice(*node.domain)] != _THEIRS:
            continue
        if takes(node, types):
            changed[slice(*node.domain)] = _OURS
            count += 1
    return count


def _read_node(view: memoryview, begin: int, end: int) -> _Node:
    node = _Node()
    for number, first, last in _fields(view, begin, end):
        if number == _NODE_KIND:
            node.kind = bytes(view[first:last])
        elif number == _NODE_DOMAIN:
            node.domain = (first, last)
        elif number == _NODE_INPUT:
            node.inputs.append(bytes(view[first:last]))
        elif number == _NODE_OUTPUT:
            node.outputs.append(bytes(view[first:last]))
        elif number == _NODE_ATTRIBUTE:
            _read_attribute(view, first, last, node)
    return node


def _read_attribute(view: memoryview, begin: int, end: int, node: _Node) -> None:
    name = b""
    value: int | float | bytes | None = None
    for number, first, last in _fields(view, begin, end):
        if number == _ATTRIBUTE_NAME:
            name = bytes(view[first:last])
        elif number == _ATTRIBUTE_INTEGER:
            value = first
        elif number == _ATTRIBUTE_FLOAT:
            value = struct.unpack("<f", view[first:last])[0]
        elif number == _ATTRIBUTE_STRING:
            value = bytes(view[first:last])
        elif number == _ATTRIBUTE_GRAPH:
            node.graphs.append((first, last))
    if value is not None:
        node.attributes[name] = value


def _input_types(view: memoryview, begin: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Of a graph's inputs that are tensors."""
    types: dict[bytes, tuple[int, int]] = {}
    for number, first, last in _fields(view, begin, end):
        if number != _GRAPH_INPUT:
            continue
        name, kind = b"", (0, 0)
        for inner, start, stop in _fields(view, first, last):
            if inner == _VALUE_NAME:
                name = bytes(view[start:stop])
            elif inner == _VALUE_TYPE:
                kind = _tensor_type(view, start, stop)
        types[name] = kind
    return types


def _tensor_type(view: memoryview, begin: int, end: int) -> tuple[int, int]:
    element = size = 0
    for number, first, last in _fields(view, begin, end):
        if number != _TYPE_TENSOR:
            continue
        for inner, start, stop in _fields(view, first, last):
            if inner == _TENSOR_ELEMENT:
                element = start
            elif inner == _TENSOR_SHAPE:
                for dimension, at, behind in _fields(view, start, stop):
                    if dimension == _SHAPE_DIMENSION:
                        values = [value for n, value, _ in _fields(view, at, behind) if n == _DIMENSION_VALUE]
                        size = values[0] if values else 0
    return element, size


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Numbers of a message's fields, with where their bytes begin and end; an integer's value stands in the
    place of its beginning. (https://protobuf.dev/programming-guides/encoding)
    """
    while at < end:
        key, at = _integer(view, at)
        kind = key & 7
        if kind == 0:
            value, at = _integer(view, at)
            yield key >> 3, value, at
            continue
        if kind == 2:
            size, at = _integer(view, at)
        else:
            size = {1: 8, 5: 4}[kind]
        yield key >> 3, at, at + size
        at += size


def _integer(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while view[at] & 0x80 and shift < _MOST_BITS:
        value |= (view[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | view[at] << shift, at + 1
