"""Inputs of products that are rounded to int8 twice: what the first rounding leaves is rounded and multiplied
as well. An export writes this as a dozen nodes (`phirt_export.graphs.stored_blocks`), which phirt-kernels has
inside its Projection.

Knows these nodes and the numbers in them; where others stand, all stays as it is.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping

from phirt.runtime.editable_graph import Node

# Bytes of constants, by their names.
Constants = Mapping[bytes, bytes]

_SHARE, _LEAST = struct.pack("<f", 1 / 127), struct.pack("<f", 1e-30)
_REDUCTION = {b"keepdims": 1}
_STANDARD = (b"", b"ai.onnx")


@dataclasses.dataclass(frozen=True)
class Twice:
    """The input [1, T, columns] that is rounded twice, and how often each value is used on the way from it to
    the pair [2, T, columns] of what is multiplied.
    """

    x: bytes
    uses: Mapping[bytes, int]


def rounded_twice(
    pair: bytes, block_size: int, columns: int, made: Mapping[bytes, Node], known: Constants
) -> Twice | None:
    """How `pair` is made; None where it is something else. `made` has the node that computes a value."""

    def inputs(
        name: bytes, kind: bytes, attributes: Mapping[bytes, int] | None = None
    ) -> tuple[bytes, bytes]:
        node = made.get(name)
        if node is None or node.kind != kind or node.domain not in _STANDARD or len(node.inputs) > 2:
            return b"", b""
        return (node.input(0), node.input(1)) if node.attributes == (attributes or {}) else (b"", b"")

    def with_constant(
        name: bytes, kind: bytes, constant: bytes, attributes: Mapping[bytes, int] | None = None
    ) -> bytes:
        first, second = inputs(name, kind, attributes)
        return first if known.get(second) == constant else b""

    both = with_constant(pair, b"Reshape", _int64s(0, 0, columns))
    rounded, rest = inputs(both, b"Concat", {b"axis": 0})
    blocks, subtracted = inputs(rest, b"Sub")
    levels, step = inputs(rounded, b"Mul")
    steps, _ = inputs(levels, b"Round")
    divided, by = inputs(steps, b"Div")
    share = with_constant(step, b"Max", _LEAST)
    top = with_constant(share, b"Mul", _SHARE)
    size = with_constant(top, b"ReduceMax", _int64s(3), _REDUCTION)
    measured, _ = inputs(size, b"Abs")
    x = with_constant(blocks, b"Reshape", _int64s(0, 0, -1, block_size))
    if not x or (subtracted, divided, measured, by) != (rounded, blocks, blocks, step):
        return None
    once = dict.fromkeys((pair, both, rest, levels, steps, share, top, size), 1)
    return Twice(x, {**once, rounded: 2, step: 2, blocks: 3})


def is_sum_of_two(node: Node, known: Constants) -> bool:
    """Whether it adds up the products of such a pair."""
    is_reduction = node.kind == b"ReduceSum" and node.domain in _STANDARD
    return is_reduction and known.get(node.input(1)) == _int64s(0) and node.attributes == _REDUCTION


def _int64s(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)
