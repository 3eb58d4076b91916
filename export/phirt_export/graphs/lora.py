"""LoRA branches chosen by the route at run time, so that an inactive branch costs (nearly) nothing.

Knows the route's conditions and the arithmetic of a branch. Knows nothing of layers.

One If around the whole stack of layers picks among three stacks: without a branch, with the one, with the
other. All refer to the same base weights in the outer graph; onnxruntime keeps one packed copy of weights
with equal bytes, so private memory and load time are those of a single stack (measured at Phi-4-mini's width,
8 layers: 717 MB and 0.4 s either way).

The alternative, an If at each of the four projections of a layer, was measured against this and dropped. An
If costs 2 µs when its structures are in the caches and 10 to 20 µs when a large model's weights have just
streamed through them, and a delta of zero costs an addition besides. Median ratios of a decode step on route
none to a graph without branches: Ifs at projections 1.15 to 1.19 at nano's size (0.24 ms a step) and 1.02 at
Phi-4-mini's width; one If 1.03 to 1.05 and 1.00. An active branch is faster too: no condition is asked inside
the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.linear import WeightFormat, WeightStore
from phirt_export.reference.config import AdapterConfig

NO_ADAPTER = 0
ROUTE_IDS = {"vision": 1, "speech": 2}


class Adapters:
    """The LoRA matrices of a decoder, all in one weight format."""

    def __init__(self, store: WeightStore, configs: Mapping[str, AdapterConfig], form: WeightFormat) -> None:
        self._store, self._configs, self._form = store, configs, form

    def share(self, x: ir.Value, projection: str, adapter: str) -> ir.Value:
        """What `adapter` adds to the base projection of x: B(A(x)), with its scale folded into B.

        Args:
            projection: name in the checkpoint, such as `model.layers.0.mlp.down_proj`.
        """
        name = f"{projection.split('.')[-1]}.{adapter}"
        down = self._store.linear(x, f"{projection}.lora_A.{adapter}.weight", self._form, f"{name}.A")
        scale = self._configs[adapter].scale
        return self._store.linear(
            down, f"{projection}.lora_B.{adapter}.weight", self._form, f"{name}.B", factor=scale
        )


def choose_route(
    g: GraphBuilder,
    route: ir.Value,
    adapters: Sequence[str],
    build: Callable[[str | None], Sequence[ir.Value]],
) -> list[ir.Value]:
    """`build(adapter)` where `route` (int64 [1]) names one of `adapters`, `build(None)` where it names none.

    The route without an adapter is asked for first, by a single comparison if possible: it pays for every
    node here.
    """

    def is_route(route_id: int) -> ir.Value:
        return g.Equal(route, g.constant([route_id], "route.id", "int64"), name=f"route.is_{route_id}")

    def choose_adapter(remaining: Sequence[str]) -> Sequence[ir.Value]:
        first, *rest = remaining
        if not rest:
            return build(first)
        return g.if_else(
            is_route(ROUTE_IDS[first]), lambda: build(first), lambda: choose_adapter(rest), "stack.adapter"
        )

    if not adapters:
        return list(build(None))
    if set(adapters) == set(ROUTE_IDS):
        inactive = is_route(NO_ADAPTER)
    else:
        (only,) = adapters
        inactive = g.Not(is_route(ROUTE_IDS[only]), name="route.inactive")
    return g.if_else(inactive, lambda: build(None), lambda: choose_adapter(adapters), "stack")
