"""Engines of one model, shared by its conversations: each request gets the one that has most of it cached.

Knows engines, how much of a prompt each holds, and bounds of count and bytes. Knows nothing of messages or
text, or of why an engine is asked for.

Which positions of a cache may serve a prompt is the engine's to say: equal adapter, token ids and media. What
is added here is whose they are. An engine remembers the conversation that used it last, which may overwrite
what it no longer needs, while another one takes a copy of what both have in common. Between strangers that is
only what is equal to the last bit to what a run without a cache gives. And some conversations share with
their own forks only: those that came from a file, for what a file claims to be cached must reach nobody else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from phirt.errors import ClosedError, ConfigError
from phirt.generate.engine import Engine
from phirt.generate.sequence import Prompt
from phirt.runtime.system import trim_heap, usable_memory

_MEMORY_SHARE = 4  # by default caches may take a quarter of the memory that there is
_WORTH_GIVING_BACK = 64 << 20  # bytes, while there is other work


@dataclasses.dataclass(frozen=True, eq=False)
class CacheOwner:
    """Who asks: a conversation, or nobody who could be known again.

    `lineage` is one object for a conversation and its forks. `isolated` conversations share with their own
    lineage only.
    """

    conversation: weakref.ref[Any] | None = None
    lineage: object | None = None
    isolated: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether it was a conversation that is no more."""
        return self.conversation is not None and self.conversation() is None

    def is_same_as(self, other: CacheOwner) -> bool:
        """Whether both are one conversation."""
        if self.conversation is None or other.conversation is None:
            return False
        return self.conversation() is other.conversation() is not None

    def is_akin_to(self, other: CacheOwner) -> bool:
        """Whether both are of one lineage."""
        return self.lineage is not None and self.lineage is other.lineage


NOBODY = CacheOwner()


@dataclasses.dataclass(frozen=True)
class CacheLimits:
    """How many engines are kept for conversations to go on with, and how many bytes of keys and values.

    The least recently used go first, those of conversations that are no more before all others. An engine
    that is answering is never taken away, and the one used last is kept whatever it takes. `max_bytes` None
    is a quarter of the memory that this process may use. Raises ConfigError where a value is out of range.
    """

    max_engines: int = 16
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value, low in (("max_engines", self.max_engines, 1), ("max_bytes", self.max_bytes, 0)):
            if name == "max_bytes" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"{name} is {value!r}, accepted: a whole number of at least {low}")

    @property
    def bytes_allowed(self) -> int:
        """The bound in bytes."""
        return usable_memory() // _MEMORY_SHARE if self.max_bytes is None else self.max_bytes


@dataclasses.dataclass(eq=False)
class _Entry:
    """One engine and who used it last."""

    engine: Engine
    owner: CacheOwner

    def shared_with(self, prompt: Prompt, owner: CacheOwner) -> int:
        """How many positions of the prompt `owner` may take from here."""
        if self.owner.is_akin_to(owner):
            return self.engine.reusable(prompt)
        if owner.isolated or self.owner.isolated or not self.engine.aligned_length:
            return 0
        return self.engine.reusable_to_the_bit(prompt)

    def is_wanted_beside(self, prompt: Prompt, owner: CacheOwner) -> bool:
        """Whether somebody else than `owner` may come back for what the prompt would overwrite here."""
        if self.owner.is_same_as(owner) or self.owner.is_gone:
            return False
        if self.owner.conversation is not None:
            return self.engine.length > self.shared_with(prompt, owner)
        # Nobody in particular takes whole chunks only, and those that the prompt has too come back with it.
        return self.engine.aligned_length > self.engine.reusable(prompt) + 1


class EnginePool:
    """Hands out engines, one stream each at a time. Safe to use from any thread."""

    def __init__(self, new_engine: Callable[[], Engine], limits: CacheLimits) -> None:
        self._make: Callable[[], Engine] | None = new_engine
        self._max_engines = limits.max_engines
        self._max_bytes = limits.bytes_allowed
        self._lock = threading.Lock()
        self._idle: list[_Entry] = []  # the most recently used last
        self._busy: weakref.WeakSet[_Entry] = weakref.WeakSet()
        self._dropped_bytes = 0  # since memory was given back
        # An engine may come back while the garbage collector runs, in a thread that holds the lock: such a
        # queue is the one thing that may then be touched.
        self._returned: queue.SimpleQueue[_Entry] = queue.SimpleQueue()

    def new_engine(self) -> Engine:
        """An engine with an empty cache that the pool does not keep. Raises ClosedError."""
        make = self._make
        self.require_open()
        assert make is not None
        return make()

    @contextlib.contextmanager
    def engine_for(self, prompt: Prompt, owner: CacheOwner = NOBODY) -> Iterator[Engine]:
        """The engine on which `prompt` costs least, for this caller alone until the block ends. Raises
        ClosedError.
        """
        with self._lock:
            entry = self._take(prompt, owner)
        try:
            yield entry.engine
        finally:
            self._returned.put(entry)
            self._collect_if_free()

    @contextlib.contextmanager
    def reading(self, prompt: Prompt, owner: CacheOwner) -> Iterator[Engine | None]:
        """The idle engine that has most of `prompt` cached, to be read and not changed; None where none has
        a part of it that `owner` may take.
        """
        with self._lock:
            self._collect()
            entry = self._best(prompt, owner)
            if entry is not None:
                self._idle.remove(entry)
                self._busy.add(entry)
        try:
            yield None if entry is None else entry.engine
        finally:
            if entry is not None:
                self._returned.put(entry)
                self._collect_if_free()

    def adopt(self, engine: Engine, owner: CacheOwner) -> None:
        """Takes in an engine with a cache that was made elsewhere. Raises ClosedError."""
        with self._lock:
            self._collect()
            self.require_open()
            self._idle.append(_Entry(engine, owner))
            self._trim()

    def forget(self, owner: CacheOwner) -> None:
        """Gives back the memory of idle engines that `owner` used last."""
        with self._lock:
            self._collect()
            self._idle = [entry for entry in self._idle if not entry.owner.is_same_as(owner)]

    def clear(self) -> None:
        """Gives back the memory of all idle engines."""
        with self._lock:
            self._collect()
            self._idle.clear()

    def close(self) -> None:
        """Gives everything back; engines in use go when their streams end."""
        with self._lock:
            self._make = None
            self._collect()
            self._idle.clear()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._make is None

    def engines(self, owner: CacheOwner | None = None) -> tuple[Engine, ...]:
        """The idle engines, the most recently used last; only those of `owner` where one is given."""
        with self._lock:
            self._collect()
            found = [entry for entry in self._idle if owner is None or entry.owner.is_same_as(owner)]
            return tuple(entry.engine for entry in found)

    @property
    def num_busy(self) -> int:
        """How many engines are in use."""
        with self._lock:
            self._collect()
            return len(self._busy)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in all engines."""
        with self._lock:
            self._collect()
            return sum(entry.engine.cache.nbytes for entry in (*self._idle, *self._busy))

    def require_open(self) -> None:
        """Raises ClosedError after `close`."""
        if self._make is None:
            raise ClosedError("this model was closed; load it again with phirt.load()")

    def _take(self, prompt: Prompt, owner: CacheOwner) -> _Entry:
        self._collect()
        self.require_open()
        entry = self._best(prompt, owner)
        if entry is not None:
            shared = entry.shared_with(prompt, owner)
            if entry.is_wanted_beside(prompt, owner) and self._can_make_room(entry, shared):
                entry = _Entry(entry.engine.fork(shared), owner)
            entry.engine.truncate(shared)
        else:
            own = (known for known in self._idle if known.owner.is_same_as(owner))
            entry = next(own, None) or self._empty(owner)
        if entry in self._idle:
            self._idle.remove(entry)
        entry.owner = owner
        self._busy.add(entry)
        self._trim()
        return entry

    def _empty(self, owner: CacheOwner) -> _Entry:
        """A new engine, or one that would have to go for it: less memory is asked for and given back."""
        if len(self._idle) + len(self._busy) < self._max_engines or not self._idle:
            return _Entry(self.new_engine(), owner)
        entry = self._oldest()
        entry.engine.reset()
        return entry

    def _oldest(self) -> _Entry:
        """The idle engine to go first."""
        return next((entry for entry in self._idle if entry.owner.is_gone), self._idle[0])

    def _best(self, prompt: Prompt, owner: CacheOwner) -> _Entry | None:
        """The idle engine with most of the prompt; of equals the owner's, then the one with least behind it,
        then the latest.
        """
        best, best_rank = None, (0, False, 0)
        for entry in self._idle:
            shared = entry.shared_with(prompt, owner)
            rank = (shared, entry.owner.is_same_as(owner), shared - entry.engine.length)
            if shared and rank >= best_rank:
                best, best_rank = entry, rank
        return best

    def _can_make_room(self, source: _Entry, shared: int) -> bool:
        """Whether a copy of the first `shared` positions of an idle engine may lie beside it, if need be in
        the place of others.
        """
        staying = [*self._busy, source]
        cache = source.engine.cache
        needed = sum(entry.engine.cache.nbytes for entry in staying) + cache.nbytes_for(shared)
        return len(staying) < self._max_engines and needed <= self._max_bytes

    def _collect(self) -> None:
        """Notes the engines that came back since."""
        while True:
            try:
                entry = self._returned.get_nowait()
            except queue.Empty:
                break
            self._busy.discard(entry)
            if not self.is_closed:
                self._idle.append(entry)
        self._trim()

    def _collect_if_free(self) -> None:
        """The same where the lock is free; else whoever comes next does it."""
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _trim(self) -> None:
        """Drops idle engines beyond the limits."""
        while len(self._idle) > (not self._busy) and self._exceeds_limits():
            place = self._idle.index(self._oldest())
            self._dropped_bytes += self._idle.pop(place).engine.cache.nbytes
        if self._dropped_bytes > (_WORTH_GIVING_BACK if self._busy else 0):
            # The C library would keep it, once for each thread that asked for some.
            self._dropped_bytes = 0
            trim_heap()

    def _exceeds_limits(self) -> bool:
        engines = [*self._idle, *self._busy]
        too_many = len(engines) > self._max_engines
        return too_many or sum(entry.engine.cache.nbytes for entry in engines) > self._max_bytes
