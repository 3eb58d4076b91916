"""Pass: onnxruntime's own operators as the standard's, of opset 23. Attention with a cache is left to
`static_attention`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.variants.rewriter import Rewriter, Values, attribute, integer

_EPSILON = 1e-5


def rms_norm(r: Rewriter, x: ir.Value | None, weight: ir.Value | None, node: ir.Node, name: str) -> ir.Value:
    """The norm of a node over the last axis."""
    epsilon = float(attribute(node, "epsilon", _EPSILON))
    return r.g.RMSNormalization(x, weight, name=name, axis=-1, epsilon=epsilon)


def _norm(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    return [rms_norm(r, inputs[0], inputs[1], node, node.name or "norm")]


def _added_norm(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    total = r.g.Add(inputs[0], inputs[1], name=f"{node.name}.sum")
    return [rms_norm(r, total, inputs[2], node, node.name or "norm"), None, None, total]


def _quick_gelu(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """x · sigmoid(alpha · x)."""
    x, alpha = inputs[0], float(attribute(node, "alpha", 1.702))
    scaled = x if alpha == 1.0 else r.g.Mul(x, r.g.constant(np.float32(alpha), f"{node.name}.alpha"))
    return [r.g.Mul(x, r.g.Sigmoid(scaled, name=f"{node.name}.sigmoid"), name=node.name or "silu")]


def _attention(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """softmax(q·k / sqrt(d) + keys + bias)·v of whole sequences [1, S, width]. What stands for `keys` is
    float32 [1, 1, 1, S]: 0, or a number that leaves nothing of a score.
    """
    g, name, heads = r.g, node.name or "attention", integer(node, "num_heads", 1)
    q, k, v, _, keys, bias = [*inputs, None, None, None][:6]
    width = _columns(q)
    apart = g.constant([1, -1, heads, width // heads], f"{name}.apart", "int64")

    def split(x: ir.Value | None, part: str, order: list[int]) -> ir.Value:
        return g.Transpose(
            g.Reshape(x, apart, name=f"{name}.{part}.apart"), perm=order, name=f"{name}.{part}"
        )

    factor = g.constant(np.float32((width // heads) ** -0.5), f"{name}.factor")
    queries = g.Mul(split(q, "q", [0, 2, 1, 3]), factor, name=f"{name}.scaled")
    scores = g.MatMul(queries, split(k, "k", [0, 2, 3, 1]), name=f"{name}.scores")
    for added, what in ((bias, "biased"), (keys, "masked")):
        if added is not None:
            scores = g.Add(scores, added, name=f"{name}.{what}")
    mixed = g.MatMul(g.Softmax(scores, axis=-1, name=f"{name}.shares"), split(v, "v", [0, 2, 1, 3]))
    joined = g.constant([1, -1, width], f"{name}.joined", "int64")
    return [g.Reshape(g.Transpose(mixed, perm=[0, 2, 1, 3], name=f"{name}.rows"), joined, name=name)]


def _columns(value: ir.Value | None) -> int:
    """Elements of a row: the columns of the matrix that makes it, or of the bias that is added to it."""
    node = None if value is None else value.producer()
    assert node is not None and node.op_type in ("Add", "MatMul"), "queries come from a linear"
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    return int(weight.const_value.shape.numpy()[-1])


def _gelu(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """The exact one in the place of the one by tanh, from which it differs by 0.0005 at most."""
    return [r.g.Gelu(inputs[0], name=node.name or "gelu")]


RULES = {
    "SimplifiedLayerNormalization": _norm,
    "SkipSimplifiedLayerNormalization": _added_norm,
    "QuickGelu": _quick_gelu,
    "Gelu": _gelu,
    "MultiHeadAttention": _attention,
}
