"""LoRA branches chosen at run time, so that an inactive branch costs (nearly) nothing: those of the
checkpoint's own adapters, picked by the route, and one whose matrices are inputs of the graph.

Knows the conditions, the inputs and the arithmetic of a branch. Knows nothing of layers.

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

The inputs for a user's adapter are in a decoder graph of their own beside the plain one, over the same
weights. Taking them costs even where nothing is fed: at Phi-4-mini's width 1 to 2 % of a run (8 layers, int4:
an If at each projection 0.5 to 2.5 % of a decode step and 1.5 % of a prefill, a product with matrices of rank
zero 1 and 3 %), and in nano 4 % of a decode step under no adapter and 30 % under its own, where one If or two
more stand at each projection. Whoever brings no adapter opens the plain graph and pays nothing.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from phirt.bundle.lora import ACTIVE_INPUT, input_names, projections
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.reference.config import AdapterConfig, DecoderConfig

NO_ADAPTER = 0
ADAPTER_IDS = {"vision": 1, "speech": 2}
# Hidden size from which a decode step is long enough for an If at each projection.
_WIDE = 1024


class Branches(enum.Enum):
    """Which branches a stack of layers has: none; those of adapters of which one at least is active; or such
    as are skipped where none is.
    """

    ABSENT = enum.auto()
    ACTIVE = enum.auto()
    SKIPPABLE = enum.auto()


class AdapterInputs:
    """The graph inputs for one LoRA adapter that a user brings: whether there is one, bool [1], and for each
    projection its matrices [inputs, rank] and [rank, outputs], float32. Ranks may differ, and be 0.
    """

    def __init__(self, g: GraphBuilder, config: DecoderConfig) -> None:
        self._g = g
        self.active = g.input(ACTIVE_INPUT, "bool", [1])
        self._matrices: dict[str, tuple[ir.Value, ir.Value]] = {}
        for layer in range(config.num_layers):
            for projection in projections(config):
                a, b = input_names(layer, projection)
                rank = f"{a.removesuffix('.A')}.rank"
                self._matrices[f"model.layers.{layer}.{projection.module}"] = (
                    g.input(a, "float32", [projection.inputs, rank]),
                    g.input(b, "float32", [rank, projection.outputs]),
                )

    def share(self, x: ir.Value, projection: str) -> ir.Value:
        """What the adapter adds to a projection of x."""
        a, b = self._matrices[projection]
        name = projection.split(".")[-1]
        down = self._g.MatMul(x, a, name=f"{name}.user.A")
        return self._g.MatMul(down, b, name=f"{name}.user.B")


class Adapters:
    """What adapters add to a decoder's projections: those of the checkpoint, at most one for each of
    ADAPTER_IDS and all in one weight format, and beside them the user's where the graph has inputs for it.
    """

    def __init__(
        self,
        store: WeightStore,
        configs: Mapping[str, AdapterConfig],
        form: WeightFormat,
        route: ir.Value,
        user: AdapterInputs | None = None,
    ) -> None:
        assert set(configs) <= set(ADAPTER_IDS)
        self._store, self._configs, self._form = store, configs, form
        self._route, self._user = route, user
        # The last one needs no condition where a branch is entered only if one of them is active.
        asked = list(configs) if user is not None else list(configs)[:-1]
        self._is_active = {name: _has_id(store.g, route, ADAPTER_IDS[name]) for name in asked}

    def add(self, y: ir.Value, x: ir.Value, projection: str, name: str, branches: Branches) -> ir.Value:
        """y, the base projection of x, plus what the active adapters add to it.

        Args:
            projection: its name in the checkpoint, such as `model.layers.0.mlp.down_proj`.
            name: its name in the graph.
        """
        g = self._store.g
        if branches is Branches.ABSENT:
            return y
        if branches is Branches.ACTIVE:
            return self._sum(y, x, projection, name)
        (chosen,) = g.if_else(
            self._inactive,
            lambda: [g.Identity(y, name=f"{name}.same")],
            lambda: [self._sum(y, x, projection, name)],
            f"{name}.adapted",
        )
        return chosen

    def choose_stack(self, build: Callable[[Branches], Sequence[ir.Value]], width: int) -> list[ir.Value]:
        """The outputs of `build` for a model whose hidden states have `width` elements."""
        if not self._configs and self._user is None:
            return list(build(Branches.ABSENT))
        if width >= _WIDE:
            return list(build(Branches.SKIPPABLE))
        return self._store.g.if_else(
            self._inactive, lambda: build(Branches.ABSENT), lambda: build(Branches.ACTIVE), "stack"
        )

    @functools.cached_property
    def _inactive(self) -> ir.Value:
        """Whether no adapter is active, in as few nodes as possible: every run pays for them."""
        g, user = self._store.g, self._user
        if not self._configs:
            assert user is not None
            return g.Not(user.active, name="lora.inactive")
        if user is not None:
            none = _has_id(g, self._route, NO_ADAPTER)
            return g.And(none, g.Not(user.active, name="lora.inactive"), name="adapters.inactive")
        if len(self._configs) == len(ADAPTER_IDS):
            return _has_id(g, self._route, NO_ADAPTER)
        (only,) = self._configs
        return g.Not(_has_id(g, self._route, ADAPTER_IDS[only]), name="route.inactive")

    def _sum(self, y: ir.Value, x: ir.Value, projection: str, name: str) -> ir.Value:
        """y plus the shares of the active adapters, of which there is one."""
        g, user = self._store.g, self._user
        if self._configs:
            y = g.Add(y, self._share(x, projection, list(self._configs)), name=f"{name}.sum")
        if user is None:
            return y
        if not self._configs:
            return g.Add(y, user.share(x, projection), name=f"{name}.user")
        (chosen,) = g.if_else(
            user.active,
            lambda: [g.Add(y, user.share(x, projection), name=f"{name}.user")],
            lambda: [g.Identity(y, name=f"{name}.own")],
            f"{name}.users",
        )
        return chosen

    def _share(self, x: ir.Value, projection: str, adapters: Sequence[str]) -> ir.Value:
        """What the active one of the checkpoint's adapters adds, 0 where none of these is."""
        g = self._store.g
        name = projection.split(".")[-1]
        if not adapters:
            return g.constant(np.zeros((1, 1, 1)), f"{name}.nothing", "float32")
        first, *rest = adapters
        if first not in self._is_active:
            return self._branch(x, projection, first)
        (chosen,) = g.if_else(
            self._is_active[first],
            lambda: [self._branch(x, projection, first)],
            lambda: [self._share(x, projection, rest)],
            f"{name}.adapter",
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


def _has_id(g: GraphBuilder, route: ir.Value, adapter_id: int) -> ir.Value:
    return g.Equal(route, g.constant([adapter_id], "route.id", "int64"), name=f"route.is_{adapter_id}")
