"""A float32 graph with its matrices stored in few bits, for machines that compute in floats.

Knows matrices and DequantizeLinear. How numbers are rounded is `quantize`'s matter.
"""

from __future__ import annotations

import onnx_ir as ir

from phirt_export.targets.passes.quantize import StoredMatrices, WeightScheme
from phirt_export.variants.emitter import Emitter
from phirt_export.variants.rewriter import Rewriter, Values, copied


def with_stored_weights(model: ir.Model, scheme: WeightScheme) -> ir.Model:
    """The graph with each matrix as codes that are dequantized where it is used."""
    g = Emitter(model.graph.name or "graph", model.graph.opset_imports[""])
    stored = StoredMatrices(g, scheme)

    def multiplied(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            return None
        return [g.MatMul(inputs[0], stored.matrix(weight), name=node.name or "product")]

    return copied(model, g, [{"MatMul": multiplied}])
