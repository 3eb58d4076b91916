"""Pass: GroupQueryAttention over a cache of fixed length, in standard operators.

Keys and values of the positions before come in a window; those of the run's own tokens stand behind them,
and are outputs. Which of them a token sees is told by a mask, and its place in the sequence by rows of
cosines and sines; both are inputs. Query heads of a group share keys: they are laid one below the other, so
that one product serves them all.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.variants.emitter import dims
from phirt_export.variants.rewriter import ABSENT, Rewriter, Rules, Values, attribute, integer


@dataclasses.dataclass(frozen=True)
class StaticInputs:
    """What all layers of the new graph read: rows of the rotary tables [1, tokens, pairs], and what is added
    to scores [1, 1, group · tokens, window + tokens].
    """

    cos: ir.Value
    sin: ir.Value
    mask: ir.Value
    tokens: int


def rules(static: StaticInputs) -> Rules:
    """The rule for graphs of `static.tokens` tokens."""

    def attend(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
        if str(attribute(node, "k_quant_type", "NONE")) != "NONE":
            raise ConfigError("a cache of int8 is for the target cpu; export with kv float32")
        g, name, tokens = r.g, node.name or "attend", static.tokens
        heads, kv_heads = integer(node, "num_heads", 1), integer(node, "kv_num_heads", 1)
        past_key, past_value = inputs[3], inputs[4]
        assert past_key is not None
        head = dims(past_key)[3]
        group = heads // kv_heads
        q, k, v = _parts(r, inputs, name, [heads * head, kv_heads * head, kv_heads * head])

        def split(x: ir.Value | None, count: int, part: str) -> ir.Value:
            shape = g.constant([1, tokens, count, head], f"{name}.{part}.shape", "int64")
            rows = g.Reshape(x, shape, name=f"{name}.{part}.rows")
            return g.Transpose(rows, perm=[0, 2, 1, 3], name=f"{name}.{part}.heads")

        def turned(x: ir.Value, part: str) -> ir.Value:
            if not integer(node, "do_rotary", 0):
                return x
            width = 2 * dims(static.cos)[2]
            return g.RotaryEmbedding(
                x, static.cos, static.sin, name=f"{name}.{part}.turned", rotary_embedding_dim=width
            )

        key, value = turned(split(k, kv_heads, "k"), "k"), split(v, kv_heads, "v")
        keys = g.Concat(past_key, key, axis=2, name=f"{name}.keys")
        values = g.Concat(past_value, value, axis=2, name=f"{name}.values")
        grouped = g.constant([1, kv_heads, group * tokens, head], f"{name}.grouped", "int64")
        queries = g.Reshape(turned(split(q, heads, "q"), "q"), grouped, name=f"{name}.queries")
        scale = np.float32(attribute(node, "scale", head**-0.5) or head**-0.5)
        scores = g.MatMul(queries, g.Transpose(keys, perm=[0, 1, 3, 2]), name=f"{name}.products")
        scores = g.Mul(scores, g.constant(scale, f"{name}.scale"), name=f"{name}.scores")
        shares = g.Softmax(g.Add(scores, static.mask, name=f"{name}.masked"), axis=-1, name=f"{name}.shares")
        mixed = g.MatMul(shares, values, name=f"{name}.mixed")
        apart = g.constant([1, heads, tokens, head], f"{name}.apart", "int64")
        joined = g.constant([1, tokens, heads * head], f"{name}.joined", "int64")
        rows = g.Transpose(g.Reshape(mixed, apart, name=f"{name}.each"), perm=[0, 2, 1, 3])
        return [g.Reshape(rows, joined, name=name), key, value]

    return {"GroupQueryAttention": attend, "Slice": _asked}


def _asked(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """The last positions of a run, of which a graph of one size gives all."""
    return [inputs[0]] if len(inputs) > 1 and inputs[1] is ABSENT else None


def _parts(r: Rewriter, inputs: Values, name: str, sizes: list[int]) -> Values:
    """Queries, keys and values, packed in the first input or apart."""
    if inputs[1] is not None:
        return inputs[:3]
    split = r.g.constant(sizes, f"{name}.sizes", "int64")
    return r.g.Split(inputs[0], split, name=f"{name}.parts", outputs=3, axis=-1)
