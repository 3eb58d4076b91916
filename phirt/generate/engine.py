"""Runs the decoder graph: prefill in chunks, one decode step, a generation loop, reuse of what is cached.

Knows token ids, media feature rows and adapters. Knows nothing of text, templates, images or sound.

A cached position is valid for one adapter and one rotary regime only (LongRoPE, arXiv 2402.13753, has short
and long factors), so both are part of the cache's state: when either changes, everything is run again from
the start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from phirt.bundle.manifest import Manifest
from phirt.errors import ContextError, RequestCancelledError
from phirt.generate.cancellation import CancelSignal, check
from phirt.generate.decoder_io import Logits
from phirt.generate.decoder_runs import DecoderRuns, DynamicRuns
from phirt.generate.kv_cache import KVCache, Layer
from phirt.generate.results import FinishReason
from phirt.generate.sequence import (
    BASE_WEIGHTS,
    Adapter,
    Features,
    Ids,
    MediaSpan,
    Prompt,
    common_prefix,
    extended,
    feature_rows,
)
from phirt.generate.speculation import DraftPolicy, RunCosts, Speculation, usual_cost
from phirt.generate.static_runs import StaticGraphs, StaticRuns
from phirt.runtime.lora import LoraInputs
from phirt.runtime.session import Session

# onnxruntime's int4 kernels are fastest at 64 to 256 rows; also the grain of cancellation
PREFILL_CHUNK = 128

Reason = Literal["prompt", "long_context", "short_context", "adapter"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a prefill is: `done` of the `total` positions that it runs.

    `reason` says why they are run: "prompt" for positions that are new; "long_context" where the sequence has
    outgrown `rope.original_context`, so that what was cached under the short rotary factors is run again
    under the long ones; "short_context" for the way back; "adapter" where another one has become active.
    """

    reason: Reason
    done: int
    total: int


OnProgress = Callable[[Progress], None]


class Engine:
    """One sequence on a decoder's graphs: its cache and what that cache holds.

    Several engines may share a session, or the graphs of one size. An engine itself serves one thread at a
    time; only the signals passed as `cancel` may be set from elsewhere.
    """

    def __init__(
        self,
        session: Session | StaticGraphs,
        manifest: Manifest,
        *,
        loras: LoraInputs | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        run_costs: RunCosts | None = None,
    ) -> None:
        if loras is None and isinstance(session, Session):
            loras = LoraInputs(session.spec, manifest.geometry)  # forks share it
        runs = _runs(session, manifest, loras)
        self._session, self._loras = session, loras
        self._manifest = manifest
        self._geometry = manifest.geometry
        self._chunk = runs.chunk or prefill_chunk
        self._runs: DecoderRuns = runs
        self._cache = runs.cache
        self._ids = np.zeros(256, dtype=np.int64)
        self._spans: tuple[MediaSpan, ...] = ()
        self._adapter = BASE_WEIGHTS
        self._long = False
        self._aligned = 0  # leading positions that were run in whole chunks, as every prefill runs them
        self._costs = run_costs or RunCosts()

    @property
    def length(self) -> int:
        """Positions cached now."""
        return self._cache.length

    @property
    def adapter(self) -> Adapter:
        """The adapter under which the cache was filled."""
        return self._adapter

    @property
    def cache(self) -> KVCache:
        """The buffers, for saving and restoring."""
        return self._cache

    @property
    def cached(self) -> Prompt:
        """What the cache holds: ids, the media under them, the adapter."""
        length = self._cache.length
        spans = tuple(span for span in self._spans if span.start < length)
        return Prompt(self._ids[:length].copy(), spans, self._adapter)

    def reset(self) -> None:
        """Forgets everything."""
        self._cache.clear()
        self._runs.forget_bindings()
        self._spans = ()
        self._long = False
        self._aligned = 0

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on."""
        self._cache.truncate(length)
        self._spans = tuple(span for span in self._spans if span.start < length)
        self._aligned = self._whole_chunks(min(self._aligned, length))

    def fork(self, length: int | None = None) -> Engine:
        """An independent engine on the same session with a copy of the first `length` cached positions, by
        default all.
        """
        other = Engine(self._session, self._manifest, loras=self._loras, prefill_chunk=self._chunk)
        other._cache = other._runs.cache = self._cache.copy(length)
        other._ids = self._ids.copy()
        other._spans = tuple(span for span in self._spans if span.start < other._cache.length)
        other._adapter, other._long = self._adapter, self._long
        other._aligned = self._whole_chunks(min(self._aligned, other._cache.length))
        return other

    @property
    def long_regime(self) -> bool:
        """Whether the cached keys were rotated by the long factors."""
        return self._long

    def restore(self, cached: Prompt, arrays: Mapping[str, Layer], *, long_regime: bool) -> None:
        """Takes over a cache exported from `cache` together with what it holds."""
        self.reset()
        self._cache.restore(arrays, len(cached.ids))
        self._store_ids(0, cached.ids)
        self._spans, self._adapter = cached.spans, cached.adapter
        self._long = long_regime

    def reusable(self, prompt: Prompt) -> int:
        """How many positions of `prompt` need not be run. At least its last one is always run, for its
        logits.
        """
        if prompt.adapter != self._adapter or self._is_long(len(prompt.ids)) != self._long:
            return 0
        return min(common_prefix(self.cached, prompt), len(prompt.ids) - 1)

    def reusable_to_the_bit(self, prompt: Prompt) -> int:
        """How many positions of `prompt` hold what an engine without a cache would compute to the last bit.

        Kernels add in another order where other numbers of positions are run at once. So these are whole
        chunks of a prefill from the start; a caller who wants no others truncates the rest.
        """
        return self._whole_chunks(min(self.reusable(prompt), self._aligned))

    @property
    def aligned_length(self) -> int:
        """The most that `reusable_to_the_bit` can be for any prompt."""
        return self._aligned

    def prefill_prompt(
        self, prompt: Prompt, cancel: CancelSignal | None = None, on_progress: OnProgress | None = None
    ) -> Logits:
        """Makes the cache hold exactly `prompt`, running only what it does not hold yet.

        Returns the logits float32 [vocab] after the last position, valid until the next call. `on_progress`
        is called before the first chunk and after each. Raises ContextError if the prompt does not fit,
        RequestCancelledError between chunks.
        """
        total, reason = len(prompt.ids), self._reason(prompt)
        keep = self._begin(prompt, total)
        for start in range(keep, total, self._chunk):
            if on_progress is not None:
                on_progress(Progress(reason, start - keep, total - keep))
            check(cancel)
            stop = min(start + self._chunk, total)
            self._run_chunk(
                prompt.ids[start:stop], feature_rows(prompt.spans, start, stop, self._runs.no_media)
            )
            if start == self._aligned:
                self._aligned = self._whole_chunks(stop)
        if on_progress is not None:
            on_progress(Progress(reason, total - keep, total - keep))
        return self._runs.row(0)

    def score_prompt(
        self, prompt: Prompt, first: int, cancel: CancelSignal | None = None
    ) -> Iterator[Logits]:
        """Makes the cache hold exactly `prompt`, as `prefill_prompt` does, and yields the logits float32
        [vocab] after each position from `first` on, valid until the next are asked for.

        Positions before `first` that are cached are not run. Raises what `prefill_prompt` raises.
        """
        total, most = len(prompt.ids), min(self._chunk, self._runs.slab_rows)
        for start in range(self._begin(prompt, first), total, most):
            check(cancel)
            stop = min(start + most, total)
            scored = max(0, stop - max(start, first))
            rows = feature_rows(prompt.spans, start, stop, self._runs.no_media)
            self._run_chunk(prompt.ids[start:stop], rows, scored)
            yield from self._runs.slab(scored)

    def _begin(self, prompt: Prompt, most: int) -> int:
        """Forgets what `prompt` does not share, or all from `most` on, and makes room for the rest. Returns
        the position from which it is to be run.
        """
        total = len(prompt.ids)
        assert total > 0
        if total > self._geometry.context:
            raise ContextError(
                f"{total} positions are needed, the model's context has {self._geometry.context}; "
                "shorten the prompt, use fewer media, or start a new conversation"
            )
        keep = min(self.reusable(prompt), most)
        self.truncate(keep)
        if prompt.adapter.lora != self._adapter.lora:
            self._runs.forget_bindings()  # its matrices are bound in them
        self._spans, self._adapter, self._long = prompt.spans, prompt.adapter, self._is_long(total)
        self._reserve(total)
        return keep

    def prefill(
        self,
        ids: Sequence[int] | Ids,
        media_features: Features | None = None,
        adapter: Adapter = BASE_WEIGHTS,
        *,
        cancel: CancelSignal | None = None,
        on_progress: OnProgress | None = None,
    ) -> Logits:
        """Appends `ids` to what is cached; `media_features` [M, hidden] are the rows of their placeholders,
        in order.

        Another adapter than the cached one runs everything again. Returns the logits [vocab] after the last
        id.
        """
        new = np.asarray(ids, dtype=np.int64)
        rows = self._runs.no_media if media_features is None else media_features
        prompt = extended(self.cached, new, rows, self._manifest.placeholders, adapter)
        return self.prefill_prompt(prompt, cancel, on_progress)

    def decode_step(
        self, token: int, cancel: CancelSignal | None = None, on_progress: OnProgress | None = None
    ) -> Logits:
        """Appends one id, which must not be a media placeholder. Returns the logits [vocab], valid until the
        next call.

        Crossing into the other rotary regime runs everything again: a prefill, with its `cancel` and its
        `on_progress`.
        """
        total = self._cache.length + 1
        if total > self._geometry.context:
            raise ContextError(
                f"the context of {self._geometry.context} positions is full; start a new conversation"
            )
        if self._is_long(total) != self._long:  # every cached key was rotated by factors that no longer hold
            return self.prefill([token], adapter=self._adapter, cancel=cancel, on_progress=on_progress)
        self._reserve(total)
        self._run_tokens([token])
        return self._runs.row(0)

    def speculation(self, eos: Sequence[int], *, repeatable: bool = False) -> Speculation:
        """Drafts for one answer, which ends at any of `eos`. How long they are follows from what runs cost on
        this engine; if `repeatable`, from the answer alone: the same runs, rounded alike, each time.
        """
        policy = DraftPolicy(usual_cost if repeatable else self._costs.measured)
        return Speculation(policy, (*self._manifest.placeholders, *eos))

    def generate(
        self,
        prompt: Prompt,
        choose: Callable[[Logits], int],
        *,
        max_new_tokens: int,
        eos: Sequence[int],
        cancel: CancelSignal | None = None,
        on_progress: OnProgress | None = None,
        speculation: Speculation | None = None,
    ) -> Generator[int, None, FinishReason]:
        """Prefills `prompt`, then yields chosen ids until one of `eos` (which is not yielded).

        The generator's return value says why it ended: "stop", "length", "context" or "cancelled". An id
        counts as cached only when the next one is asked for, so a consumer that stops early leaves a
        consistent cache. With `speculation` ids may be run before they are chosen; which are chosen does not
        depend on it.
        """
        try:
            logits = self.prefill_prompt(prompt, cancel, on_progress)
        except RequestCancelledError:
            return "cancelled"
        if speculation is not None:
            speculation.begin(prompt.ids.tolist())
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
                check(cancel)
                if speculation is None:
                    logits = self.decode_step(token, cancel, on_progress)
                else:
                    # All but the last of the ids to come may be drafted: what follows the last is not asked.
                    logits = self._follow(token, speculation, max_new_tokens - count - 1, cancel, on_progress)
            except RequestCancelledError:
                return "cancelled"
        return "length"

    def _follow(
        self,
        token: int,
        speculation: Speculation,
        wanted: int,
        cancel: CancelSignal | None,
        on_progress: OnProgress | None,
    ) -> Logits:
        """Appends the chosen id. Returns the logits [vocab] after it: from the last run if it was drafted
        there, else from a new one, in which at most `wanted` ids are drafted.
        """
        row = speculation.take(token)
        if row is not None:
            self._store_ids(self._cache.length, np.array([token], dtype=np.int64))
            self._cache.advance(1)  # its keys and values are where the run has left them
            return self._runs.row(row)
        draft = speculation.draft(max(0, min(wanted, self._room() - 1)))
        if not draft:
            return self.decode_step(token, cancel, on_progress)
        self._run_tokens([token, *draft])
        return self._runs.row(0)

    def _room(self) -> int:
        """How many ids can be run now without other buffers, in this rotary regime and this context."""
        end = self._geometry.context
        if self._geometry.has_long_regime and not self._long:
            end = self._geometry.original_context
        return min(end - self._cache.length, self._cache.capacity - self._cache.length, self._runs.longest)

    def _run_tokens(self, ids: Sequence[int]) -> None:
        """Runs ids, none of them a placeholder, after what is cached; there must be room for them.

        Row i of the logits is then what follows ids[i]. Only the first id counts as cached, the others are
        drafts.
        """
        count, start = len(ids), self._cache.length
        self._store_ids(start, np.array(ids[:1], dtype=np.int64))
        begin = self._costs.clock()
        self._runs.run_tokens(ids, self._adapter)
        self._costs.record(count, self._costs.clock() - begin)
        self._cache.advance(1)

    def _reason(self, prompt: Prompt) -> Reason:
        """Why `prompt` has positions to run."""
        if self._cache.length:
            if prompt.adapter != self._adapter:
                return "adapter"
            if self._is_long(len(prompt.ids)) != self._long:
                return "short_context" if self._long else "long_context"
        return "prompt"

    def _whole_chunks(self, length: int) -> int:
        return length - length % self._chunk

    def _is_long(self, total: int) -> bool:
        return self._geometry.has_long_regime and total > self._geometry.original_context

    def _reserve(self, total: int) -> None:
        # The long regime is announced to the graph by a total above original_context, which buffers must
        # hold.
        needed = max(total, self._geometry.original_context + 1) if self._long else total
        moved = True
        try:
            moved = self._cache.reserve(needed)
        finally:  # also where memory ran out: the cache is then empty, with other buffers
            if moved:
                self._runs.forget_bindings()

    def _run_chunk(self, ids: Ids, features: Features, scored: int = 0) -> None:
        """Runs one chunk of a prefill. The logits of its last `scored` positions go to the slab, or, where
        none are scored, those of its last one to row 0.
        """
        start = self._cache.length
        stop = start + len(ids)
        self._store_ids(start, ids)
        # The graph picks the rotary regime by the total, but this chunk belongs to a longer whole: announce
        # the regime.
        announced = max(stop, self._geometry.original_context + 1) if self._long else stop
        self._runs.run_chunk(ids, features, self._adapter, announced, scored)
        self._cache.advance(len(ids))

    def _store_ids(self, start: int, ids: Ids) -> None:
        stop = start + len(ids)
        if stop > len(self._ids):
            grown = np.zeros(max(stop, 2 * len(self._ids)), dtype=np.int64)
            grown[:start] = self._ids[:start]
            self._ids = grown
        self._ids[start:stop] = ids


def _runs(session: Session | StaticGraphs, manifest: Manifest, loras: LoraInputs | None) -> DecoderRuns:
    if isinstance(session, StaticGraphs):
        return StaticRuns(session, manifest)
    assert loras is not None
    return DynamicRuns(session, manifest, loras)
