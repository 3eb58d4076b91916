"""What all requests of one server share: models, slots, threads, figures, and its end.

Knows how a request becomes a job, and that a job ends when nobody wants its answer any more. Knows nothing of
what is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

import phirt

from .bodies import ClientGoneError
from .errors import ApiError, stopping
from .jobs import Job, Work
from .metrics import Metrics
from .settings import ServerSettings
from .slots import Slots

E = TypeVar("E")
T = TypeVar("T")


class Serving:
    """The shared parts. `model` answers, `embedder` makes vectors; each goes by its bundle's name, and by
    those in `aliases`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        model: phirt.Model,
        embedder: phirt.Embedder | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.embedder = embedder
        self.created = int(time.time())
        self.metrics = Metrics()
        self.slots = Slots(settings.parallel, settings.queue)
        self._aliases = dict(aliases or {})
        self._executor = ThreadPoolExecutor(settings.parallel, thread_name_prefix="phirt-answer")
        self._jobs: set[Job[Any]] = set()
        self._stopping = False
        self._watch_figures()

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of all models here, each once."""
        own = [self.model.manifest.name]
        return tuple(own if self.embedder is None else [*own, self.embedder.manifest.name])

    def require_model(self, given: str | None, name: str) -> None:
        """Raises ApiError where a request names another model than `name`."""
        if given is None or given == name or self._aliases.get(given) == name:
            return
        raise ApiError(
            404,
            f"there is no model {given[:80]!r} at this address; ask for {name!r}",
            code="model_not_found",
            param="model",
        )

    @contextlib.asynccontextmanager
    async def job(self, receive: Receive, work: Work[E]) -> AsyncIterator[Job[E]]:
        """The work in a thread, as soon as a slot is free. When whoever asked hangs up, it is told to end,
        and its slot is free when it has; while it waits, ClientGoneError is raised.
        """
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            async with contextlib.AsyncExitStack() as stack:
                await _unless(gone, stack.enter_async_context(self.slots.slot()))
                if self._stopping:
                    raise stopping()
                job = Job(self._executor, work)
                self._jobs.add(job)
                gone.add_done_callback(lambda _: self._abandon(job))
                try:
                    yield job
                finally:
                    job.cancel.set()
                    await job.finished()
                    self._jobs.discard(job)
        finally:
            gone.cancel()

    def stop(self) -> None:
        """Lets nothing begin, and tells what runs to end at its next step."""
        self._stopping = True
        for job in self._jobs:
            job.cancel.set()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def close(self) -> None:
        """Gives back threads and models."""
        self._executor.shutdown()
        self.model.close()
        if self.embedder is not None:
            self.embedder.close()

    def _abandon(self, job: Job[Any]) -> None:
        if job in self._jobs and not job.cancel.is_set():
            self.metrics.cancelled.inc()
            job.cancel.set()

    def _watch_figures(self) -> None:
        pool = self.model.generator.pool
        for name, help_text, value in (
            ("requests_working", "Requests that are answered now.", lambda: self.slots.working),
            ("requests_waiting", "Requests that wait for their turn.", lambda: self.slots.waiting),
            ("engines_busy", "Engines that are in use.", lambda: pool.num_busy),
            ("cache_bytes", "Bytes of keys and values in all engines.", lambda: pool.nbytes),
        ):
            self.metrics.watch(name, help_text, value)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Future[None], entering: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. Raises ClientGoneError where the client hangs up before."""
    task = asyncio.ensure_future(entering)
    try:
        both: set[asyncio.Future[Any]] = {task, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
