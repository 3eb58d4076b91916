"""LoRA branches chosen by the route at run time, so that an inactive branch costs (nearly) nothing.

Knows the route's conditions and the arithmetic of a branch. Knows nothing of layers.

One If around the whole stack of layers picks between two stacks: without branches, and with them. Both refer
to the same base weights in the outer graph; onnxruntime keeps one packed copy of weights with equal bytes, so
private memory and load time are those of a single stack. Inside the second stack a small If at each
projection picks the adapter. It must be this way round: onnxruntime packs a weight of the outer graph for the
nodes of a subgraph, but not for those of a subgraph's subgraph, which then run unpacked (a decode step on a
route two levels deep took 2.4 s instead of 21 ms at Phi-4-mini's width, 8 layers). A branch's own matrices
belong to it and are packed at any depth.

Ifs at the projections alone were measured against this and dropped: an If costs 2 µs when its structures are
in the caches and 10 to 20 µs when a large model's weights have just streamed through them, and a delta of
zero costs an addition besides. Median ratios of a decode step on route none to a graph without branches: Ifs
at projections 1.15 to 1.19 at nano's size (0.24 ms a step) and 1.02 at Phi-4-mini's width; one If 1.03 to
1.07 and 1.00.
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
    """The LoRA matrices of a decoder, at most one adapter for each of ROUTE_IDS, all in one weight format."""

    def __init__(
        self, store: WeightStore, configs: Mapping[str, AdapterConfig], form: WeightFormat, route: ir.Value
    ) -> None:
        assert set(configs) <= set(ROUTE_IDS)
        self._store, self._configs, self._form = store, configs, form
        self._is_first: ir.Value | None = None
        if len(configs) == len(ROUTE_IDS):
            self._is_first = _is_route(store.g, route, ROUTE_IDS[next(iter(configs))])

    def share(self, x: ir.Value, projection: str) -> ir.Value:
        """What the active adapter adds to the base projection of x.

        Args:
            projection: name in the checkpoint, such as `model.layers.0.mlp.down_proj`.
        """
        first, *rest = self._configs
        if self._is_first is None:
            return self._branch(x, projection, first)
        (chosen,) = self._store.g.if_else(
            self._is_first,
            lambda: [self._branch(x, projection, first)],
            lambda: [self._branch(x, projection, *rest)],
            f"{projection.split('.')[-1]}.adapter",
        )
        return chosen

    def _branch(self, x: ir.Value, projection: str, adapter: str) -> ir.Value:
        """B(A(x)), with the adapter's scale folded into B."""
        name = f"{projection.split('.')[-1]}.{adapter}"
        down = self._store.linear(x, f"{projection}.lora_A.{adapter}.weight", self._form, f"{name}.A")
        scale = self._configs[adapter].scale
        return self._store.linear(
            down, f"{projection}.lora_B.{adapter}.weight", self._form, f"{name}.B", factor=scale
        )


def _is_route(g: GraphBuilder, route: ir.Value, route_id: int) -> ir.Value:
    return g.Equal(route, g.constant([route_id], "route.id", "int64"), name=f"route.is_{route_id}")


def choose_route(
    g: GraphBuilder,
    route: ir.Value,
    adapters: Sequence[str],
    build: Callable[[bool], Sequence[ir.Value]],
) -> list[ir.Value]:
    """`build(True)`, with branches, where `route` (int64 [1]) names one of `adapters`; else `build(False)`.

    The route without an adapter is asked for by a single comparison if possible: it pays for every node here.
    """
    if not adapters:
        return list(build(False))
    if set(adapters) == set(ROUTE_IDS):
        inactive = _is_route(g, route, NO_ADAPTER)
    else:
        (only,) = adapters
        inactive = g.Not(_is_route(g, route, ROUTE_IDS[only]), name="route.inactive")
    return g.if_else(inactive, lambda: build(False), lambda: build(True), "stack")
