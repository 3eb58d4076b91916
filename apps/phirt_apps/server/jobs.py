"""Blocking work in a thread, whose events come to the event loop as they happen.

Knows threads and the event loop. Knows nothing of what is worked on. The thread never waits for whoever
reads, so that a slow reader holds nothing up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

E = TypeVar("E")
Emit = Callable[[E], None]
Work = Callable[[Emit[E], threading.Event], None]


class Job(Generic[E]):
    """One piece of work: iterate it for its events, in the loop that began it. What the work raises is raised
    there. `cancel` tells it to end; it does so at its next step.
    """

    def __init__(self, executor: Executor, work: Work[E]) -> None:
        self.cancel = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[E | None] = asyncio.Queue()
        self._work = work
        self._thread = self._loop.run_in_executor(executor, self._run)

    async def events(self) -> AsyncIterator[E]:
        """What happens, until the work has ended."""
        while (event := await self._events.get()) is not None:
            yield event
        await self._thread

    async def finished(self) -> None:
        """Waits until the thread is done, however that ends."""
        await asyncio.wait([self._thread])

    def _run(self) -> None:
        try:
            self._work(self._emit, self.cancel)
        finally:
            self._emit(None)

    def _emit(self, event: E | None) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)
