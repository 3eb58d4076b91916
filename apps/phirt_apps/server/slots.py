"""How many requests are answered at once, and how many wait for their turn; the others are refused at once.

Knows counts and times. Knows nothing of what is done in a slot. Used from the event loop alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator

from .errors import ApiError

_WEIGHT = 0.2  # of the newest request in the estimate of how long one takes
_LONGEST_WAIT = 60


class Slots:
    """`parallel` slots, and a queue of `waiting` places in front of them. First come, first served."""

    def __init__(self, parallel: int, waiting: int) -> None:
        self._parallel = parallel
        self._places = parallel + waiting
        self._slots = asyncio.Semaphore(parallel)
        self._seconds = 1.0  # that a request takes
        self.admitted = 0
        self.working = 0

    @property
    def waiting(self) -> int:
        """How many have a place and no slot yet."""
        return self.admitted - self.working

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from before its body is read until it is answered. Raises ApiError where
        all are taken.
        """
        if self.admitted >= self._places:
            raise self._full()
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A slot, as soon as it is this request's turn."""
        async with self._slots:
            begin = time.monotonic()
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1
                self._seconds += _WEIGHT * (time.monotonic() - begin - self._seconds)

    def _full(self) -> ApiError:
        wait = math.ceil(self._seconds * (self.waiting + 1) / self._parallel)
        seconds = min(max(wait, 1), _LONGEST_WAIT)
        return ApiError(
            429,
            f"the server answers {self.working} requests, and {self.waiting} wait; ask again in {seconds} s",
            code="queue_full",
            headers={"Retry-After": str(seconds)},
        )
