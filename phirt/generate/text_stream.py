"""An answer as its reader has it: an iterator over pieces of text, in threads or in asyncio.

Knows a generation and a place in its pieces. Knows nothing of engines or conversations.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from phirt.generate.cancellation import Cancellation, CancelSignal
from phirt.generate.generation import Generation
from phirt.generate.results import Result

_T = TypeVar("_T")


class TextStream(Iterator[str]):
    """Iterate it for pieces of text. Nothing runs until the first piece, or the result, is asked for.

    Any thread may read it; each piece is given once. Pieces that were made while somebody else ran the answer
    to its end are kept for the reader.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._given = 0
        self._lock = threading.Lock()

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        generation = self._generation
        generation.is_read = True
        while True:
            ended = generation.has_ended  # asked first: an end comes after its last piece
            with self._lock:
                if self._given < len(generation.pieces):
                    self._given += 1
                    return generation.pieces[self._given - 1]
            if ended and generation.failure is not None:
                raise generation.failure
            if ended:
                raise StopIteration
            generation.advance()

    def __del__(self) -> None:
        # A plain note and no lock: the garbage collector may come here in the midst of anything.
        generation = getattr(self, "_generation", None)
        if generation is not None and generation.is_read and not generation.has_ended:
            generation.is_dropped = True

    def __repr__(self) -> str:
        return f"<phirt.{type(self).__name__} {_state(self._generation)}>"

    def cancel(self) -> None:
        """Stops the answer within one step; it keeps what it has. Safe from any thread, at any time."""
        self._generation.cancel()

    @property
    def done(self) -> bool:
        """Whether the answer is finished, cancelled or failed."""
        return self._generation.has_ended

    @property
    def result(self) -> Result:
        """The finished answer; runs to the end if it has not yet. Pieces that were not read stay readable."""
        generation = self._generation
        generation.is_read = True
        while not generation.has_ended:
            generation.advance()
        if generation.failure is not None:
            raise generation.failure
        assert generation.outcome is not None
        return generation.outcome

    def text(self) -> str:
        """The whole answer; runs to the end if it has not yet."""
        return self.result.text

    def finish(self) -> None:
        """Runs to the end if it has not yet. What was not read stays readable, a failure too."""
        self._generation.finish()


class AsyncTextStream(AsyncIterator[str]):
    """The same for asyncio: `async for piece in stream`, then `await stream.result()`.

    Everything runs in the event loop's own worker threads, one step at a time, and nothing before the first
    piece is asked for. Cancelling the task that waits for a piece stops the answer within a step, and reading
    and encoding media before the next picture or recording.
    """

    def __init__(self, start: Callable[[CancelSignal], TextStream]) -> None:
        self._work = _Work(start)
        self._given = 0

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> str:
        work = self._work
        while True:
            generation = work.generation
            if generation is not None:
                generation.is_read = True
                ended = generation.has_ended  # asked first: an end comes after its last piece
                if self._given < len(generation.pieces):
                    self._given += 1
                    return generation.pieces[self._given - 1]
                if ended and generation.failure is not None:
                    raise generation.failure
                if ended:
                    raise StopAsyncIteration
            await _in_thread(work, work.advance)

    def __del__(self) -> None:
        work = getattr(self, "_work", None)
        if work is not None and work.generation is not None and not work.generation.has_ended:
            work.generation.is_dropped = work.generation.is_read

    def __repr__(self) -> str:
        generation = self._work.generation
        state = "not begun" if generation is None else _state(generation)
        return f"<phirt.{type(self).__name__} {state}>"

    def cancel(self) -> None:
        """Stops the answer within one step; it keeps what it has. Safe from any thread, at any time."""
        self._work.cancel.set()

    async def result(self) -> Result:
        """The finished answer; runs to the end if it has not yet. Pieces that were not read stay readable."""
        return await _in_thread(self._work, self._work.result)

    async def text(self) -> str:
        """The whole answer; runs to the end if it has not yet."""
        return (await self.result()).text

    async def aclose(self) -> None:
        """Stops the answer and waits until it has: for readers who leave before the end."""
        self.cancel()
        await _in_thread(self._work, self._work.finish)


class _Work:
    """What the worker threads of an asynchronous stream do. They know this and not the stream, which is
    dropped when its reader drops it and not when a thread is done with it.
    """

    def __init__(self, start: Callable[[CancelSignal], TextStream]) -> None:
        self.cancel = Cancellation()
        self.generation: Generation | None = None
        self._start = start
        self._lock = threading.Lock()

    def begun(self) -> Generation:
        """The generation, which is made by the first call."""
        with self._lock:
            if self.generation is None:
                self.generation = self._start(self.cancel)._generation
            return self.generation

    def advance(self) -> None:
        """Runs until the next piece or the end."""
        generation = self.begun()
        generation.is_read = True
        generation.advance()

    def result(self) -> Result:
        """Runs to the end."""
        return TextStream(self.begun()).result

    def finish(self) -> None:
        """Runs to the end what has begun."""
        with self._lock:
            generation = self.generation
        if generation is not None:
            generation.finish()


async def _in_thread(work: _Work, act: Callable[[], _T]) -> _T:
    import asyncio  # 15 ms, for programs with an event loop only, which have imported it

    try:
        return await asyncio.to_thread(act)
    except asyncio.CancelledError:
        # The thread's step goes on to its end, and is the last. Perhaps nobody comes back, so another thread
        # gives back what the answer holds.
        work.cancel.set()
        asyncio.get_running_loop().run_in_executor(None, work.finish)
        raise


def _state(generation: Generation) -> str:
    if generation.outcome is not None:
        state: str = generation.outcome.finish_reason
    elif generation.failure is not None:
        state = f"failed: {type(generation.failure).__name__}"
    else:
        state = "half-read" if generation.is_read else "not begun"
    return f"{state}: {_shortened(''.join(generation.pieces))}"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
