"""Pass: queries, keys and values apart, and turned before attention sees them: what DirectML's
GroupQueryAttention takes. It rejects packed ones, and would take `do_rotary` and leave it undone.

Its RotaryEmbedding turns whole heads; where a part of each head is turned, that part alone goes through it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.variants.emitter import Emitter
from phirt_export.variants.rewriter import Rewriter, Values, attribute, integer, name_of

_LENGTHS, _TABLES, _POSITIONS = 5, 7, 9


def _attend(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    g, name = r.g, name_of(node)
    if integer(node, "local_window_size", -1) > 0:
        raise ConfigError("DirectML's attention knows no sliding window; choose another target")
    if str(attribute(node, "k_quant_type", "NONE")) != "NONE":
        raise ConfigError("a cache of int8 is for the target cpu; export with kv float32")
    padded = [*inputs, *[None] * (10 - len(inputs))]
    heads, kv_heads = integer(node, "num_heads", 1), integer(node, "kv_num_heads", 1)
    past, cos = padded[3], node.inputs[_TABLES]
    assert past is not None and past.shape is not None and cos is not None and cos.shape is not None
    head, pairs = past.shape[3], cos.shape[1]
    assert isinstance(head, int) and isinstance(pairs, int)
    q, k, v = padded[:3]
    if k is None:
        sizes = g.constant([n * head for n in (heads, kv_heads, kv_heads)], f"{name}.sizes", "int64")
        q, k, v = g.Split(q, sizes, name=f"{name}.parts", outputs=3, axis=-1)
    if integer(node, "do_rotary", 0):
        positions = padded[_POSITIONS] or _places(r, padded)
        tables = padded[_TABLES : _TABLES + 2]
        q = _turned(g, q, heads, head, 2 * pairs, positions, tables, f"{name}.q")
        k = _turned(g, k, kv_heads, head, 2 * pairs, positions, tables, f"{name}.k")
    scale = float(attribute(node, "scale", head**-0.5)) or head**-0.5
    return g.GroupQueryAttention(
        q, k, v, *padded[3:7], name=name, outputs=3, num_heads=heads, kv_num_heads=kv_heads, scale=scale
    )


def _turned(
    g: Emitter, x: ir.Value | None, heads: int, head: int, turned: int,
    positions: ir.Value | None, tables: Values, name: str,
) -> ir.Value:  # fmt: skip
    """x [1, T, heads · head] with the first `turned` elements of each head turned by its place."""
    if turned == head:
        return g.contrib("RotaryEmbedding", x, positions, *tables, name=name)
    apart = g.constant([1, -1, heads, head], f"{name}.apart", "int64")
    sizes = g.constant([turned, head - turned], f"{name}.sizes", "int64")
    first, rest = g.Split(g.Reshape(x, apart), sizes, name=f"{name}.split", outputs=2, axis=3)
    flat = g.Reshape(first, g.constant([1, -1, heads * turned], f"{name}.flat", "int64"))
    again = g.contrib("RotaryEmbedding", flat, positions, *tables, name=f"{name}.turned")
    again = g.Reshape(again, g.constant([1, -1, heads, turned], f"{name}.again", "int64"))
    joined = g.constant([1, -1, heads * head], f"{name}.joined", "int64")
    return g.Reshape(g.Concat(again, rest, axis=3), joined, name=name)


def _places(r: Rewriter, inputs: Values) -> ir.Value:
    """Positions int64 [1, T] of the run's tokens: the last of all positions is that of its last token."""

    def build() -> ir.Value:
        g, int64 = r.g, int(ir.DataType.INT64)
        ids = r.input("input_ids")
        last = g.Cast(inputs[_LENGTHS], to=int64, name="places.last")
        count = g.Shape(ids, start=1, end=2, name="places.count")
        zero, one = g.constant(np.int64(0), "places.zero"), g.constant(np.int64(1), "places.one")
        first = g.Add(g.Sub(last, count), g.constant([1], "places.next", "int64"), name="places.first")
        steps = g.Range(zero, g.Squeeze(count), one, name="places.steps")
        return g.Unsqueeze(g.Add(steps, first), g.constant([0], "places.axis", "int64"), name="places")

    return r.once("places", build)


RULES = {"GroupQueryAttention": _attend}
