"""Runs of a decoder whose graphs take tensors of one size: prefills padded to it, decode steps of one token.

Knows the graphs of `phirt.bundle.static` and what each of them is fed. Knows nothing of which ids are worth
running, or of providers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import Manifest, StaticShapes, TensorSpec
from phirt.bundle.static import DECODE, EMBED, GATE, HEAD, LAYER_INPUTS, PREFILL, STATIC_GRAPHS
from phirt.errors import ConfigError
from phirt.generate.decoder_io import Logits
from phirt.generate.kv_cache import KVCache
from phirt.generate.sequence import Adapter, Features, Ids
from phirt.runtime.session import Session, SessionConfig
from phirt.runtime.tensor import empty_array, ort_value

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class StaticGraphs:
    """The opened graphs by name; all sequences of a model share them."""

    sessions: Mapping[str, Session]
    static: StaticShapes

    @classmethod
    def open(cls, manifest: Manifest, config: SessionConfig) -> StaticGraphs:
        """Opens them all. Raises what `Session` raises."""
        assert manifest.static is not None
        return cls({name: Session(manifest, name, config) for name in STATIC_GRAPHS}, manifest.static)


class StaticRuns:
    """Runs of `StaticGraphs`. Keys and values lie in buffers as long as the window from the start; what a run
    has computed is copied to its place there.
    """

    longest = 1

    def __init__(self, graphs: StaticGraphs, manifest: Manifest) -> None:
        geometry = manifest.geometry
        self._graphs, self._manifest = graphs, manifest
        self.chunk: int | None = graphs.static.prefill
        self.slab_rows = graphs.static.prefill
        window = graphs.static.window
        self.cache = KVCache.of_graph(graphs.sessions[DECODE].spec.inputs, geometry, capacity=window)
        self.no_media: Features = np.zeros((0, geometry.hidden_size), dtype=np.float32)
        self._logits: Logits = empty_array((self.slab_rows, geometry.vocab_size), np.float32)
        self._gates = {name: np.zeros(1, np.float32) for name in manifest.adapters}
        self._bindings: dict[str, tuple[Any, dict[str, Array], dict[str, Array]]] = {}

    def run_tokens(self, ids: Sequence[int], adapter: Adapter) -> None:
        assert len(ids) == 1
        hidden = self._run(DECODE, np.array(ids, np.int64), self.no_media, adapter)
        self._score(hidden, 0, 1)

    def run_chunk(self, ids: Ids, features: Features, adapter: Adapter, announced: int, scored: int) -> None:
        assert announced == self.cache.length + len(ids), "a window has one rotary regime"
        graph = DECODE if len(ids) == 1 else PREFILL
        hidden = self._run(graph, ids, features, adapter)
        self._score(hidden, len(ids) - (scored or 1), len(ids))

    def row(self, index: int) -> Logits:
        row: Logits = self._logits[index]
        return row

    def slab(self, count: int) -> Logits:
        rows: Logits = self._logits[:count]
        return rows

    def forget_bindings(self) -> None:
        self._bindings.clear()

    def _run(self, graph: str, ids: Ids, features: Features, adapter: Adapter) -> Array:
        """Runs ids behind what is cached, and puts their keys and values there. Returns hidden states
        [tokens, hidden_size], of which the first ones are theirs.
        """
        if adapter.lora is not None:
            raise ConfigError("graphs of one size take no adapter of a user's; load the bundle on the CPU")
        binding, taken, given = self._bound(graph)
        count, start = len(ids), self.cache.length
        padded = np.full((1, len(taken["inputs_embeds"][0])), self._manifest.tokens.pad, np.int64)
        padded[0, :count] = ids
        feeds: dict[str, Array] = {
            "input_ids": padded,
            "media_features": features,
            "position": np.array([start], np.int64),
        }
        made = self._graphs.sessions[EMBED].run(feeds)
        for name, array in zip(LAYER_INPUTS, made, strict=True):
            taken[name][...] = array
        for name, gate in self._gates.items():
            gate[0] = float(name == adapter.name)
        self._graphs.sessions[graph].run_bound(binding)
        self.cache.put({name: given[f"present.{name}"][:, :, :count] for name in self.cache.names})
        hidden: Array = given["hidden"][0]
        return hidden

    def _score(self, hidden: Array, first: int, stop: int) -> None:
        """The logits of positions first..stop-1 of a run, from row 0 on."""
        for row, position in enumerate(range(first, stop)):
            feeds = {"hidden": np.ascontiguousarray(hidden[None, position : position + 1])}
            self._logits[row] = self._graphs.sessions[HEAD].run(feeds)[0][0, 0]

    def _bound(self, graph: str) -> tuple[Any, dict[str, Array], dict[str, Array]]:
        """A binding for a graph's runs, and the arrays that it reads and writes, by name."""
        if graph not in self._bindings:
            session = self._graphs.sessions[graph]
            binding, spec = session.binding(), session.spec
            buffers = {past: value for past, _, value in self.cache.bindings()}
            taken = {
                one.name: self._gates[one.name.removeprefix(GATE)]
                if one.name.startswith(GATE)
                else _zeros(one)
                for one in spec.inputs
                if one.name not in buffers
            }
            given = {one.name: _zeros(one) for one in spec.outputs}
            for name, array in taken.items():
                buffers[name] = ort_value(array)
            for name, value in buffers.items():
                binding.bind_ortvalue_input(name, value)
            for name, array in given.items():
                binding.bind_ortvalue_output(name, ort_value(array))
            self._bindings[graph] = binding, taken, given
        return self._bindings[graph]


def _zeros(spec: TensorSpec) -> Array:
    """An array for a tensor of one size."""
    return np.zeros([int(size) for size in spec.shape], spec.dtype)
