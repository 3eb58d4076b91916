"""Faster products of quantized weights on the CPU, where the package phirt-kernels is installed: its
operators take the place of onnxruntime's in a graph that is about to be opened. The bundle stays as it is.

Knows where the package's library is and which nodes it computes as well as onnxruntime does: MatMulNBits over
int8 activations. Knows nothing of how; nothing of sessions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "PHIRT_KERNELS"  # "off", or the instruction set that is to be used
_OFF, _PLAIN = "off", "generic"
_PACKAGE = "phirt_kernels"
_OPERATOR = b"MatMulNBits"
# As long as each other: a node changes its domain in place.
_THEIRS, _OURS = b"com.microsoft", b"phirt.kernels"
assert len(_THEIRS) == len(_OURS)
# ModelProto.opset_import = {domain, version: 1}.
_OPSET = bytes((0x42, len(_OURS) + 4, 0x0A, len(_OURS))) + _OURS + bytes((0x10, 0x01))
# Field numbers of onnx.proto3.
_MODEL_GRAPH, _GRAPH_NODE = 7, 1
_NODE_KIND, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_GRAPH = 1, 3, 6
_INT8_ACTIVATIONS = 4  # accuracy_level

_log = logging.getLogger("phirt.kernels")


@functools.cache
def library() -> Path | None:
    """The library of operators; None where it is not installed, switched off, or no faster on this CPU, which
    is logged.
    """
    if os.environ.get(VARIABLE, "") == _OFF or importlib.util.find_spec(_PACKAGE) is None:
        return None
    path: Path = importlib.import_module(_PACKAGE).library_path()
    try:
        found = _instructions_of(path)
    except (OSError, AttributeError) as error:
        _log.warning("phirt-kernels is not used: %s cannot be loaded: %s", path, error)
        return None
    if found == _PLAIN:
        _log.warning("phirt-kernels is not used: it has no instructions for this CPU")
        return None
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
            count += _replace(view, begin, end, changed)
    return bytes(changed) + _OPSET if count else None


def _replace(view: memoryview, begin: int, end: int, changed: bytearray) -> int:
    """Gives nodes of a graph, and of graphs inside it, their new domain. Returns how many."""
    count = 0
    for number, first, last in _fields(view, begin, end):
        if number == _GRAPH_NODE:
            count += _replace_node(view, first, last, changed)
    return count


def _replace_node(view: memoryview, begin: int, end: int, changed: bytearray) -> int:
    kind, domain, count, rounded = b"", None, 0, False
    for number, first, last in _fields(view, begin, end):
        if number == _NODE_KIND:
            kind = bytes(view[first:last])
        elif number == _NODE_DOMAIN:
            domain = (first, last)
        elif number == _NODE_ATTRIBUTE:
            name, value = b"", 0
            for inner, start, stop in _fields(view, first, last):
                if inner == _ATTRIBUTE_NAME:
                    name = bytes(view[start:stop])
                elif inner == _ATTRIBUTE_INTEGER:
                    value = start
                elif inner == _ATTRIBUTE_GRAPH:
                    count += _replace(view, start, stop, changed)
            rounded = rounded or (name == b"accuracy_level" and value == _INT8_ACTIVATIONS)
    if kind == _OPERATOR and rounded and domain is not None and view[slice(*domain)] == _THEIRS:
        changed[slice(*domain)] = _OURS
        count += 1
    return count


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
    while view[at] & 0x80:
        value |= (view[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | view[at] << shift, at + 1
