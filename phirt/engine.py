"""Runs the decoder graph: prefill in chunks, one decode step, a generation loop, reuse of what is cached.

Knows token ids, media feature rows and routes. Knows nothing of text, templates, images or sound.

A cached position is valid for one route and one rotary regime only (short or long LongRoPE factors, spec
section A), so both are part of the cache's state: when either changes, everything is run again from the
start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.errors import BundleError, ContextError
from phirt.kv_cache import KVCache
from phirt.manifest import Manifest
from phirt.session import Session, ort_value

PREFILL_CHUNK = (
    128  # onnxruntime's int4 kernels are fastest at 64 to 256 rows; also the grain of cancellation
)

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class CancelledError(Exception):
    """Raised inside the engine when the caller's event is set; what was run so far stays cached."""


@dataclasses.dataclass(frozen=True, eq=False)
class MediaSpan:
    """A run of placeholder ids: where it starts, its features float32 [N, hidden], and a key that names the
    content.
    """

    start: int
    features: Rows
    key: str

    @property
    def stop(self) -> int:
        """The position after the run."""
        return self.start + len(self.features)

    def same_as(self, other: MediaSpan) -> bool:
        """Whether both put the same content at the same positions."""
        return (self.start, self.stop, self.key) == (other.start, other.stop, other.key)


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A whole sequence to be cached: ids int64 [T], the media behind its placeholders in order, and the
    route.
    """

    ids: Ids
    spans: tuple[MediaSpan, ...] = ()
    route: str = "none"


def common_prefix(old: Prompt, new: Prompt) -> int:
    """Positions at the start that mean the same in both: equal ids and, under placeholders, equal media."""
    shortest = min(len(old.ids), len(new.ids))
    differing = np.flatnonzero(old.ids[:shortest] != new.ids[:shortest])
    length = int(differing[0]) if len(differing) else shortest
    for one, other in ((old, new), (new, old)):
        for span in one.spans:
            if span.start < length and not any(span.same_as(candidate) for candidate in other.spans):
                length = span.start
    return length


def _check_cache_inputs(session: Session, cache: KVCache) -> None:
    """The graph takes exactly the buffers that the geometry asks for. Raises BundleError."""
    taken = {spec.name for spec in session.spec.inputs if spec.name.startswith("past_key_values.")}
    if taken != {f"past_key_values.{name}" for name in cache.names}:
        raise BundleError(
            f"the decoder graph takes {len(taken)} cache buffers, the geometry's layers make "
            f"{len(cache.names)}; export the bundle again"
        )


class Engine:
    """One sequence on a decoder session: its cache and what that cache holds.

    Several engines may share a session. An engine itself serves one thread at a time; only the events passed
    as `cancel` may be set from elsewhere.
    """

    def __init__(self, session: Session, manifest: Manifest, *, prefill_chunk: int = PREFILL_CHUNK) -> None:
        self._session = session
        self._manifest = manifest
        self._geometry = manifest.geometry
        self._chunk = prefill_chunk
        geometry = manifest.geometry
        self._cache = KVCache(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, geometry.context)
        _check_cache_inputs(session, self._cache)
        self._ids = np.zeros(256, dtype=np.int64)
        self._spans: tuple[MediaSpan, ...] = ()
        self._route = "none"
        self._long = False
        self._decode_binding: Any = None
        self._io = _StaticIO(geometry.vocab_size, geometry.hidden_size)

    @property
    def length(self) -> int:
        """Positions cached now."""
        return self._cache.length

    @property
    def route(self) -> str:
        """The route under which the cache was filled."""
        return self._route

    @property
    def cache(self) -> KVCache:
        """The buffers, for saving and restoring."""
        return self._cache

    @property
    def cached(self) -> Prompt:
        """What the cache holds: ids, the media under them, the route."""
        length = self._cache.length
        spans = tuple(span for span in self._spans if span.start < length)
        return Prompt(self._ids[:length].copy(), spans, self._route)

    def reset(self) -> None:
        """Forgets everything."""
        self._cache.clear()
        self._decode_binding = None
        self._spans = ()
        self._long = False

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on."""
        self._cache.truncate(length)
        self._spans = tuple(span for span in self._spans if span.start < length)

    def fork(self) -> Engine:
        """An independent engine on the same session with a copy of the cache."""
        other = Engine(self._session, self._manifest, prefill_chunk=self._chunk)
        other._cache = self._cache.copy()
        other._ids = self._ids.copy()
        other._spans, other._route, other._long = self._spans, self._route, self._long
        return other

    @property
    def long_regime(self) -> bool:
        """Whether the cached keys were rotated by the long factors."""
        return self._long

    def restore(self, cached: Prompt, arrays: dict[str, Rows], *, long_regime: bool) -> None:
        """Takes over a cache exported from `cache` together with what it holds."""
        self.reset()
        self._cache.restore(arrays, len(cached.ids))
        self._store_ids(0, cached.ids)
        self._spans, self._route = cached.spans, cached.route
        self._long = long_regime

    def reusable(self, prompt: Prompt) -> int:
        """How many positions of `prompt` need not be run. At least its last one is always run, for its
        logits.
        """
        if prompt.route != self._route or self._is_long(len(prompt.ids)) != self._long:
            return 0
        return min(common_prefix(self.cached, prompt), len(prompt.ids) - 1)

    def prefill_prompt(self, prompt: Prompt, cancel: threading.Event | None = None) -> Rows:
        """Makes the cache hold exactly `prompt`, running only what it does not hold yet.

        Returns the logits float32 [vocab] after the last position, valid until the next call. Raises
        ContextError if the prompt does not fit, CancelledError between chunks.
        """
        total = len(prompt.ids)
        assert total > 0
        if total > self._geometry.context:
            raise ContextError(
                f"{total} positions are needed, the model's context has {self._geometry.context}; "
                "shorten the prompt, use fewer media, or start a new conversation"
            )
        keep = self.reusable(prompt)
        self._cache.truncate(keep)
        self._spans, self._route, self._long = prompt.spans, prompt.route, self._is_long(total)
        self._reserve(total)
        for start in range(keep, total, self._chunk):
            _check(cancel)
            stop = min(start + self._chunk, total)
            self._run_chunk(
                prompt.ids[start:stop], _feature_rows(prompt.spans, start, stop, self._io.no_media)
            )
        return self._io.last_logits

    def prefill(
        self,
        ids: Sequence[int] | Ids,
        media_features: Rows | None = None,
        route: str = "none",
        *,
        cancel: threading.Event | None = None,
    ) -> Rows:
        """Appends `ids` to what is cached; `media_features` [M, hidden] are the rows of their placeholders,
        in order.

        Another route than the cached one runs everything again. Returns the logits [vocab] after the last id.
        """
        known = self.cached
        new = np.asarray(ids, dtype=np.int64)
        rows = (
            np.zeros((0, self._geometry.hidden_size), np.float32)
            if media_features is None
            else media_features
        )
        spans = known.spans + self._anonymous_spans(new, rows, len(known.ids))
        return self.prefill_prompt(Prompt(np.concatenate([known.ids, new]), spans, route), cancel)

    def decode_step(self, token: int, cancel: threading.Event | None = None) -> Rows:
        """Appends one id, which must not be a media placeholder. Returns the logits [vocab], valid until the
        next call.

        Crossing the rotary regime runs everything again, which `cancel` can stop like any prefill.
        """
        total = self._cache.length + 1
        if total > self._geometry.context:
            raise ContextError(
                f"the context of {self._geometry.context} positions is full; start a new conversation"
            )
        if self._is_long(total) != self._long:  # every cached key was rotated by factors that no longer hold
            return self.prefill([token], route=self._route, cancel=cancel)
        self._reserve(total)
        self._store_ids(total - 1, np.array([token], dtype=np.int64))
        if self._decode_binding is None:
            self._decode_binding = self._bind(self._io.token_value, self._io.no_media_value)
        self._io.token[0, 0] = token
        self._io.set_lengths(total, total)
        self._session.run_bound(self._decode_binding)
        self._cache.advance(1)
        return self._io.last_logits

    def generate(
        self,
        prompt: Prompt,
        choose: Callable[[Rows], int],
        *,
        max_new_tokens: int,
        eos: Sequence[int],
        cancel: threading.Event | None = None,
    ) -> Generator[int, None, str]:
        """Prefills `prompt`, then yields chosen ids until one of `eos` (which is not yielded).

        The generator's return value says why it ended: "stop", "length", "context" or "cancelled". An id is
        run only when the next one is asked for, so a consumer that stops early leaves a consistent cache.
        """
        try:
            logits = self.prefill_prompt(prompt, cancel)
        except CancelledError:
            return "cancelled"
        for count in range(1, max_new_tokens + 1):
            if cancel is not None and cancel.is_set():
                return "cancelled"
            token = choose(logits)
            if token in eos:
                return "stop"
            yield token
            if count == max_new_tokens:
                return "length"
            if self._cache.length == self._geometry.context:
                return "context"
            try:
                _check(cancel)
                logits = self.decode_step(token, cancel)
            except CancelledError:
                return "cancelled"
        return "length"

    def _is_long(self, total: int) -> bool:
        return self._geometry.has_long_regime and total > self._geometry.rope.original_context

    def _reserve(self, total: int) -> None:
        # The long regime is announced to the graph by a total above original_context, which buffers must
        # hold.
        needed = max(total, self._geometry.rope.original_context + 1) if self._long else total
        moved = True
        try:
            moved = self._cache.reserve(needed)
        finally:  # also where memory ran out: the cache is then empty, with other buffers
            if moved:
                self._decode_binding = None

    def _run_chunk(self, ids: Ids, features: Rows) -> None:
        """Runs one chunk of a prefill."""
        start = self._cache.length
        stop = start + len(ids)
        self._store_ids(start, ids)
        # The graph picks the rotary regime by the total, but this chunk belongs to a longer whole: announce
        # the regime.
        self._io.set_lengths(
            stop, max(stop, self._geometry.rope.original_context + 1) if self._long else stop
        )
        chunk = np.ascontiguousarray(ids).reshape(1, -1)
        binding = self._bind(ort_value(chunk), ort_value(np.ascontiguousarray(features)))
        self._session.run_bound(binding)
        self._cache.advance(len(ids))

    def _bind(self, ids: Any, media: Any) -> Any:
        """A binding of `ids` and `media` with the engine's own lengths, logits and cache buffers."""
        self._io.route[0] = self._manifest.routes[self._route].id
        binding = self._session.binding()
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("media_features", media)
        for name, value in self._io.values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("logits", self._io.logits_value)
        for past, present, value in self._cache.bindings():
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        return binding

    def _store_ids(self, start: int, ids: Ids) -> None:
        stop = start + len(ids)
        if stop > len(self._ids):
            grown = np.zeros(max(stop, 2 * len(self._ids)), dtype=np.int64)
            grown[:start] = self._ids[:start]
            self._ids = grown
        self._ids[start:stop] = ids

    def _anonymous_spans(self, ids: Ids, rows: Rows, offset: int) -> tuple[MediaSpan, ...]:
        """One span for each run of placeholders in `ids`, named by the content of its rows."""
        tokens = self._manifest.tokens
        placeholders = [token for token in (tokens.image, tokens.audio) if token is not None]
        positions = np.flatnonzero(np.isin(ids, placeholders))
        assert len(positions) == len(rows), "one feature row for each placeholder"
        if not len(positions):
            return ()
        spans = []
        runs = np.split(np.arange(len(positions)), np.flatnonzero(np.diff(positions) > 1) + 1)
        for run in runs:
            features = rows[run[0] : run[-1] + 1]
            key = hashlib.sha256(features.tobytes()).hexdigest()
            spans.append(MediaSpan(offset + int(positions[run[0]]), features, key))
        return tuple(spans)


def _feature_rows(spans: tuple[MediaSpan, ...], start: int, stop: int, empty: Rows) -> Rows:
    """The rows that stand at positions `start` to `stop`; spans are in order and do not overlap."""
    parts = [
        span.features[max(start - span.start, 0) : stop - span.start]
        for span in spans
        if span.start < stop and span.stop > start
    ]
    return np.concatenate(parts) if parts else empty


class _StaticIO:
    """Arrays that every run reuses, and the OrtValues on their memory."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        self.token = np.zeros((1, 1), dtype=np.int64)
        self.token_value = ort_value(self.token)
        self.no_media = np.zeros((0, hidden_size), dtype=np.float32)
        self.no_media_value = ort_value(self.no_media)
        self.logits = np.zeros((1, 1, vocab_size), dtype=np.float32)
        self.last_logits: Rows = self.logits.reshape(-1)
        self.logits_value = ort_value(self.logits)
        self.route = np.zeros(1, dtype=np.int64)
        self._num_logits = np.ones(1, dtype=np.int64)
        self._seqlens_k = np.zeros(1, dtype=np.int32)
        self._total = np.zeros(1, dtype=np.int32)
        self.values = {
            "route": ort_value(self.route),
            "num_logits": ort_value(self._num_logits),
            "seqlens_k": ort_value(self._seqlens_k),
            "total_sequence_length": ort_value(self._total),
        }

    def set_lengths(self, length: int, announced: int) -> None:
        """`length` positions after this run; `announced` is the total by which the graph picks its rotary
        factors.
        """
        self._seqlens_k[0] = length - 1
        self._total[0] = announced


def _check(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise CancelledError
