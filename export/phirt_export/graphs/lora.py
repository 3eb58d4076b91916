"""LoRA branches chosen by the route at run time, so that an inactive branch costs (nearly) nothing.

Knows the route's conditions and the arithmetic of a branch. Knows nothing of layers.

Where the Ifs stand depends on the model's width. An If costs 2 µs when its structures are in the caches and
10 to 20 µs when a large model's weights have just streamed through them, whatever is computed beside it.

- Narrow models: one If around the whole stack of layers picks between two stacks, without branches and with
  them; inside the second a small If at each projection picks the adapter. Both stacks refer to the same base
  weights in the outer graph. An If at each projection of a single stack would cost nano 15 to 19 % of a
  decode step.
- Wide models: a single stack with an If at each projection, 1 to 2 % of a step at Phi-4-mini's width. Two
  stacks would pack every base weight twice while the graph is opened and hold all unpacked ones until the
  second time: twice the time and, at 5.6 billion weights, 2 GB more at the peak.

A base weight must never be used two Ifs deep: onnxruntime packs a weight of the outer graph for the nodes of
a subgraph, but not for those of a subgraph's subgraph, which then run unpacked (a decode step took 2.4 s
instead of 21 ms at Phi-4-mini's width, 8 layers). A branch's own matrices belong to it and are packed at any
depth.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.linear import WeightFormat, WeightStore
from phirt_export.reference.config import AdapterConfig

NO_ADAPTER = 0
ROUTE_IDS = {"vision": 1, "speech": 2}
# Hidden size from which a decode step is long enough for an If at each projection.
_WIDE = 1024


class Branches(enum.Enum):
    """Which branches a stack of layers has: none; those of an adapter that is active; or such as are skipped
    where no adapter is.
    """

    ABSENT = enum.auto()
    ACTIVE = enum.auto()
    SKIPPABLE = enum.auto()


class Adapters:
    """The LoRA matrices of a decoder, at most one adapter for each of ROUTE_IDS, all in one weight format."""

    def __init__(
        self, store: WeightStore, configs: Mapping[str, AdapterConfig], form: WeightFormat, route: ir.Value
    ) -> None:
        assert set(configs) <= set(ROUTE_IDS)
        self._store, self._configs, self._form = store, configs, form
        self._route = route
        self._is_first: ir.Value | None = None
        if len(configs) == len(ROUTE_IDS):
            self._is_first = _is_route(store.g, route, ROUTE_IDS[next(iter(configs))])

    def add(self, y: ir.Value, x: ir.Value, projection: str, name: str, branches: Branches) -> ir.Value:
        """y, the base projection of x, plus what the active adapter adds to it.

        Args:
            projection: its name in the checkpoint, such as `model.layers.0.mlp.down_proj`.
            name: its name in the graph.
        """
        g = self._store.g
        if branches is Branches.ABSENT or not self._configs:
            return y
        if branches is Branches.ACTIVE:
            return g.Add(y, self._share(x, projection), name=f"{name}.sum")
        (chosen,) = g.if_else(
            self._inactive,
            lambda: [g.Identity(y, name=f"{name}.same")],
            lambda: [g.Add(y, self._share(x, projection), name=f"{name}.sum")],
            f"{name}.adapted",
        )
        return chosen

    def choose_stack(self, build: Callable[[Branches], Sequence[ir.Value]], width: int) -> list[ir.Value]:
        """The outputs of `build` for a model whose hidden states have `width` elements."""
        if not self._configs:
            return list(build(Branches.ABSENT))
        if width >= _WIDE:
            return list(build(Branches.SKIPPABLE))
        return self._store.g.if_else(
            self._inactive, lambda: build(Branches.ABSENT), lambda: build(Branches.ACTIVE), "stack"
        )

    @functools.cached_property
    def _inactive(self) -> ir.Value:
        """Whether no adapter is active, by one comparison if possible: route none pays for each node here."""
        g = self._store.g
        if len(self._configs) == len(ROUTE_IDS):
            return _is_route(g, self._route, NO_ADAPTER)
        (only,) = self._configs
        return g.Not(_is_route(g, self._route, ROUTE_IDS[only]), name="route.inactive")

    def _share(self, x: ir.Value, projection: str) -> ir.Value:
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
