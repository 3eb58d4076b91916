"""Runs of a decoder graph of dynamic shapes over one sequence's cache: what is fed, and where logits go.

Knows names and values of the graph's inputs, and which arrays are bound once for many runs. Knows nothing of
which ids are worth running, or of what a cached position is good for; `engine` decides that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from phirt.bundle.adapters import adapter_id
from phirt.bundle.manifest import SOME_ROWS, Manifest
from phirt.generate.decoder_io import DecoderIO, Logits
from phirt.generate.kv_cache import KVCache
from phirt.generate.sequence import Adapter, Features, Ids
from phirt.generate.speculation import LONGEST_RUN
from phirt.runtime.lora import LoraInputs
from phirt.runtime.session import Session
from phirt.runtime.tensor import ort_value


class DecoderRuns(Protocol):
    """One sequence's cache, and runs that append to it. Runs write keys and values behind what is cached;
    whoever asks for them tells the cache how many of these count.

    Attributes:
        cache: the buffers.
        no_media: features of no rows.
        longest: ids that `run_tokens` can take.
        chunk: ids that a run of a prefill takes at most; None where it may take any number.
        slab_rows: positions that `run_chunk` can score at once.
    """

    cache: KVCache
    no_media: Features
    longest: int
    chunk: int | None
    slab_rows: int

    def run_tokens(self, ids: Sequence[int], adapter: Adapter) -> None:
        """Runs ids, none of them a placeholder; row i of the logits is then what follows ids[i]."""
        ...

    def run_chunk(self, ids: Ids, features: Features, adapter: Adapter, announced: int, scored: int) -> None:
        """Runs a part of a prompt. The logits of its last `scored` positions go to the slab, or, where none
        are scored, those of its last one to row 0. `announced` is the total by which the rotary regime is
        chosen.
        """
        ...

    def row(self, index: int) -> Logits:
        """The logits [vocab] in row `index`, valid until the next run."""
        ...

    def slab(self, count: int) -> Logits:
        """The first `count` rows of what the last chunk has scored, valid until the next."""
        ...

    def forget_bindings(self) -> None:
        """To be called where buffers or the adapter's matrices are others than before."""
        ...


class DynamicRuns:
    """Runs of one graph that takes any number of ids and writes its cache in place."""

    chunk: int | None = None
    longest = LONGEST_RUN

    def __init__(self, session: Session, manifest: Manifest, loras: LoraInputs) -> None:
        geometry = manifest.geometry
        self._session, self._manifest = session, manifest
        self._loras = loras
        self.cache = KVCache.of_graph(session.spec.inputs, geometry, session)
        media = next(one for one in session.spec.inputs if one.name == "media_features")
        least = int(media.shape[0] == SOME_ROWS)
        self._io = DecoderIO(geometry.vocab_size, geometry.hidden_size, LONGEST_RUN, media.dtype, least)
        self._bindings: dict[int, Any] = {}  # by the ids of a run
        self.slab_rows = self._io.slab_rows
        self.no_media: Features = np.zeros((0, geometry.hidden_size), np.float32)

    def run_tokens(self, ids: Sequence[int], adapter: Adapter) -> None:
        count, start = len(ids), self.cache.length
        self._io.tokens[:count] = ids
        self._io.set_lengths(start + count, start + count, count)
        binding = self._bindings.get(count)
        if binding is None:
            logits = self._io.logits_value(count)
            binding = self._bind(self._io.tokens_value(count), self._io.no_media_value, logits, adapter)
            # Elsewhere what lies in this process's memory is copied to the device when it is bound.
            if self._session.device.is_cpu:
                self._bindings[count] = binding
        self._session.run_bound(binding)

    def run_chunk(self, ids: Ids, features: Features, adapter: Adapter, announced: int, scored: int) -> None:
        self._io.set_lengths(self.cache.length + len(ids), announced, scored or 1)
        logits = self._io.slab_value(scored) if scored else self._io.logits_value(1)
        chunk = np.ascontiguousarray(ids).reshape(1, -1)
        rows = np.ascontiguousarray(features, self._io.no_media.dtype) if len(features) else self._io.no_media
        media = ort_value(rows)
        self._session.run_bound(self._bind(ort_value(chunk), media, logits, adapter))

    def row(self, index: int) -> Logits:
        return self._io.row(index)

    def slab(self, count: int) -> Logits:
        rows: Logits = self._io.slab[:count].astype(np.float32, copy=False)
        return rows

    def forget_bindings(self) -> None:
        self._bindings.clear()

    def _bind(self, ids: Any, media: Any, logits: Any, adapter: Adapter) -> Any:
        """A binding of `ids`, `media` and `logits` with the runs' own lengths and cache buffers."""
        self._io.route[0] = adapter_id(self._manifest, adapter.name)
        binding = self._session.binding()
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("media_features", media)
        for name, value in self._io.values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("logits", logits)
        for name, value in self._loras.values(adapter.lora):
            binding.bind_ortvalue_input(name, value)
        for past, present, value in self.cache.bindings():
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        return binding
