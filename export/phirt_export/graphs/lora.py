"""LoRA branches chosen by the route at run time, so that an inactive branch costs (nearly) nothing.

Knows the route's conditions and where a branch's arithmetic goes. Knows nothing of layers.

An `If` costs about 2 µs a run whatever it holds, and adding a delta of zero costs a node and a pass over
memory. So no node is added for an inactive branch: the node that consumes the projection (attention, SwiGLU,
residual norm) moves into the If, once plain and once behind the sum. Two layouts follow from the size of the
model:

- `per_projection`: four Ifs a layer, base weights in the outer graph, prepacked once by the runtime. At
  Phi-4-mini's width a decode step takes 12 ms and 8 layers pay 60 µs for it.
- `per_route`: one If around the whole stack, whose branches refer to the same bytes of the data file. The
  runtime prepacks the base weights once per route, which a small model (a decode step of 0.3 ms, where 24 Ifs
  are 15 %) can afford.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.linear import WeightFormat, WeightStore
from phirt_export.reference.config import AdapterConfig

NO_ADAPTER = 0
ROUTE_IDS = {"vision": 1, "speech": 2}
Consumer = Callable[[ir.Value], Sequence[ir.Value]]


class Branches(Protocol):
    """How a projection takes its LoRA share."""

    def apply(
        self, base: ir.Value, x: ir.Value, projection: str, consume: Consumer, name: str
    ) -> list[ir.Value]:
        """What `consume` makes of `base`, or of `base` plus the active branch's share for input `x`.

        Args:
            base: the base projection of x.
            projection: its name in the checkpoint, such as `model.layers.0.mlp.down_proj`.
            consume: builds the nodes that read the projection; may be called once per branch.
        """


class LowRank:
    """The arithmetic of the adapters of a decoder."""

    def __init__(self, store: WeightStore, adapters: Mapping[str, AdapterConfig], form: WeightFormat) -> None:
        self.store, self.adapters, self.form = store, adapters, form

    def share(self, x: ir.Value, projection: str, adapter: str) -> ir.Value:
        """B(A(x)), with the branch's scale folded into B."""
        name = f"{projection.split('.')[-1]}.{adapter}"
        down = self.store.linear(x, f"{projection}.lora_A.{adapter}.weight", self.form, f"{name}.A")
        scale = self.adapters[adapter].scale
        return self.store.linear(
            down, f"{projection}.lora_B.{adapter}.weight", self.form, f"{name}.B", factor=scale
        )


class FixedBranch:
    """One adapter, or none, decided when the graph is built."""

    def __init__(self, low_rank: LowRank, adapter: str | None) -> None:
        self._low_rank, self._adapter = low_rank, adapter

    def apply(
        self, base: ir.Value, x: ir.Value, projection: str, consume: Consumer, name: str
    ) -> list[ir.Value]:
        """See `Branches`."""
        if self._adapter is None:
            return list(consume(base))
        share = self._low_rank.share(x, projection, self._adapter)
        return list(consume(self._low_rank.store.g.Add(base, share, name=f"{name}.sum")))


class BranchPerProjection:
    """An If around each consumer; which adapter is active is asked only inside the active branch."""

    def __init__(self, low_rank: LowRank, route: RouteConditions) -> None:
        self._low_rank, self._route = low_rank, route

    def apply(
        self, base: ir.Value, x: ir.Value, projection: str, consume: Consumer, name: str
    ) -> list[ir.Value]:
        """See `Branches`."""
        g = self._low_rank.store.g

        def active() -> Sequence[ir.Value]:
            (share,) = self._route.choose_adapter(
                lambda adapter: [self._low_rank.share(x, projection, adapter)], f"{name}.branch"
            )
            return consume(g.Add(base, share, name=f"{name}.sum"))

        return g.if_else(self._route.inactive, lambda: consume(base), active, name)


class RouteConditions:
    """Booleans about the route; the fewer nodes, the less an inactive branch costs."""

    def __init__(self, g: GraphBuilder, adapters: Sequence[str], route: ir.Value) -> None:
        self._g, self._adapters, self._route = g, list(adapters), route
        if set(adapters) == set(ROUTE_IDS):
            self.inactive = self._is(NO_ADAPTER)
        else:
            (only,) = adapters
            self.inactive = g.Not(self._is(ROUTE_IDS[only]), name="route.inactive")

    def _is(self, route_id: int) -> ir.Value:
        g = self._g
        return g.Equal(self._route, g.constant([route_id], "route.id", "int64"), name=f"route.is_{route_id}")

    def choose_adapter(self, build: Callable[[str], Sequence[ir.Value]], name: str) -> list[ir.Value]:
        """`build(adapter)` for the active one, which must be one of the adapters."""
        *others, last = self._adapters

        def choose(remaining: list[str]) -> Sequence[ir.Value]:
            if not remaining:
                return build(last)
            first, *rest = remaining
            return self._g.if_else(
                self._is(ROUTE_IDS[first]), lambda: build(first), lambda: choose(rest), name
            )

        return list(choose(others))

    def choose_route(self, build: Callable[[str | None], Sequence[ir.Value]], name: str) -> list[ir.Value]:
        """`build(None)` without an adapter, `build(adapter)` with one."""
        return self._g.if_else(
            self.inactive, lambda: build(None), lambda: self.choose_adapter(build, f"{name}.adapter"), name
        )
