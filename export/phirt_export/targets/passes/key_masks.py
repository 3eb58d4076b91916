"""Pass: keys that count and keys that do not are told to MultiHeadAttention by what is added to scores, not
by a mask, which WebGPU's kernel does not take.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.variants.rewriter import Rewriter, Values, integer, name_of

# Small enough for float16, and of a score nothing is left.
_EXCLUDED = -3e4
_KEYS = 4


def _attend(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    if len(inputs) <= _KEYS or inputs[_KEYS] is None:
        return None
    assert len(inputs) <= _KEYS + 1 or inputs[_KEYS + 1] is None, "a mask beside a bias"
    keys, source = inputs[_KEYS], node.inputs[_KEYS]
    added = r.once(("added", source), lambda: _added(r, keys))
    heads = integer(node, "num_heads", 1)
    y = r.g.MultiHeadAttention(*inputs[:3], None, None, added, name=name_of(node), num_heads=heads)
    return [y]


def _added(r: Rewriter, keys: ir.Value | None) -> ir.Value:
    """float32 [N, 1, S, S] of a mask int32 [N, S]."""
    g, axes = r.g, r.g.constant([1, 2], "keys.axes", "int64")
    counts = g.Cast(keys, to=int(ir.DataType.BOOL), name="keys.count")
    zero, excluded = (
        g.constant(np.float32(0), "keys.zero"),
        g.constant(np.float32(_EXCLUDED), "keys.excluded"),
    )
    rows = g.Unsqueeze(g.Where(counts, zero, excluded), axes, name="keys.rows")
    size = g.Shape(keys, start=1, end=2, name="keys.size")
    one = g.constant([1, 1], "keys.one", "int64")
    shape = g.Concat(one, size, g.constant([1], "keys.each", "int64"), axis=0, name="keys.shape")
    return g.Expand(rows, shape, name="keys.added")


RULES = {"MultiHeadAttention": _attend}
