"""Pass: RMSNormalization, RotaryEmbedding and Gelu in operators that every version of the standard has.

OpenVINO's and CoreML's readers of graphs do not know the three.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.variants.rewriter import Rewriter, Values, attribute, integer


def _norm(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """x / sqrt(mean(x²) + epsilon) · weight over the last axis."""
    g, x, name = r.g, inputs[0], node.name or "norm"
    axis = g.constant([-1], f"{name}.axis", "int64")
    epsilon = g.constant(np.float32(attribute(node, "epsilon", 1e-5)), f"{name}.epsilon")
    mean = g.ReduceMean(g.Mul(x, x, name=f"{name}.squares"), axis, keepdims=1, name=f"{name}.mean")
    size = g.Sqrt(g.Add(mean, epsilon, name=f"{name}.positive"), name=f"{name}.size")
    return [g.Mul(g.Div(x, size, name=f"{name}.unit"), inputs[1], name=name)]


def _turn(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """The first `rotary_embedding_dim` elements of each head, as two halves, turned by their angle; the
    others stay.
    """
    g, (x, cos, sin), name = r.g, inputs[:3], node.name or "turned"
    turned = integer(node, "rotary_embedding_dim", 0)
    assert x is not None and turned and not integer(node, "interleaved", 0)
    heads = g.constant([1], f"{name}.heads", "int64")
    cos, sin = (g.Unsqueeze(one, heads, name=f"{name}.{what}") for one, what in ((cos, "cos"), (sin, "sin")))
    ends = [0, turned // 2, turned, np.iinfo(np.int64).max]

    def part(index: int, what: str) -> ir.Value:
        limits = (("begin", ends[index]), ("end", ends[index + 1]), ("axis", 3))
        at = (g.constant([value], f"{name}.{what}.{limit}", "int64") for limit, value in limits)
        return g.Slice(x, *at, name=f"{name}.{what}")

    first, second = part(0, "first"), part(1, "second")
    left = g.Sub(g.Mul(first, cos), g.Mul(second, sin), name=f"{name}.left")
    right = g.Add(g.Mul(second, cos), g.Mul(first, sin), name=f"{name}.right")
    return [g.Concat(left, right, part(2, "rest"), axis=3, name=name)]


def _gelu(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """x / 2 · (1 + erf(x / sqrt 2))."""
    g, x, name = r.g, inputs[0], node.name or "gelu"
    half, one = g.constant(np.float32(0.5), f"{name}.half"), g.constant(np.float32(1), f"{name}.one")
    scaled = g.Mul(x, g.constant(np.float32(0.5**0.5), f"{name}.scale"), name=f"{name}.scaled")
    share = g.Add(g.Erf(scaled, name=f"{name}.erf"), one, name=f"{name}.share")
    return [g.Mul(g.Mul(x, half, name=f"{name}.halved"), share, name=name)]


RULES = {"RMSNormalization": _norm, "RotaryEmbedding": _turn, "Gelu": _gelu}
