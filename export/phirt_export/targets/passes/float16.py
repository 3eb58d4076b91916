"""Pass: float16 in the place of float32 everywhere: weights, inputs, outputs, and what casts give.

Scales that are stored in float16 are used as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from phirt_export.variants.emitter import Emitter
from phirt_export.variants.rewriter import Rewriter, Values, copied, integer

_MOST = 65504.0  # that float16 holds


def to_float16(model: ir.Model, *, keeps_interface: bool = False) -> ir.Model:
    """The graph in float16; where it `keeps_interface`, with casts behind inputs and before outputs."""
    g = _Halves(model.graph.name or "graph", model.graph.opset_imports[""], keeps_interface)
    return copied(model, g, [{"Cast": _cast}])


def _cast(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """A cast to float32 gives float16; of a weight in float16, nothing is left to do."""
    if integer(node, "to", 0) != int(ir.DataType.FLOAT):
        return None
    x = inputs[0]
    assert x is not None
    if x.dtype == ir.DataType.FLOAT16:
        return [x]
    return [r.g.Cast(x, to=int(ir.DataType.FLOAT16), name=node.name or "cast")]


class _Halves(Emitter):
    """An emitter that takes float32 over as float16."""

    def __init__(self, name: str, opset: int, keeps_interface: bool) -> None:
        super().__init__(name, opset)
        self._keeps_interface = keeps_interface
        self._halved: dict[int, tuple[ir.TensorProtocol, ir.LazyTensor]] = {}

    def keep(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        if tensor.dtype != ir.DataType.FLOAT:
            return super().keep(tensor, name)
        if id(tensor) not in self._halved:
            half = ir.LazyTensor(
                lambda: ir.tensor(np.clip(tensor.numpy(), -_MOST, _MOST).astype(np.float16)),
                ir.DataType.FLOAT16,
                ir.Shape(tensor.shape.numpy()),
            )
            self._halved[id(tensor)] = tensor, half  # kept alive, so that its id stays its own
        return super().keep(self._halved[id(tensor)][1], name)

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        if not self._keeps_interface or dtype != "float32":
            return super().input(name, _half(dtype), shape)
        taken = super().input(name, dtype, shape)
        return self.Cast(taken, to=int(ir.DataType.FLOAT16), name=f"{name}.half")

    def output(self, value: ir.Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        if not self._keeps_interface or dtype != "float32":
            super().output(value, name, _half(dtype), shape)
            return
        super().output(self.Cast(value, to=int(ir.DataType.FLOAT), name=f"{name}.whole"), name, dtype, shape)


def _half(dtype: str) -> str:
    return "float16" if dtype == "float32" else dtype
