"""Tasks on Ray: on this machine's cores, or on a cluster at an address.

A worker is an actor without a state: it calls the function that it is told with what it is given, and what
that returns lies in Ray's store of objects. So when its process dies another one takes its place, and what
it was doing is done again, and nothing else. Nothing is reported to anybody: Ray's usage statistics are off,
and so is its dashboard. Knows Ray. Knows nothing of what tasks do.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read by it, and by what it starts
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPUs are left as they are; else it warns

import ray

from phirt.errors import ConfigError, PhirtError, first_line
from phirt_train.curate.executor import Done, Handle, Traffic, WorkerLostError, count, size_of

LOCAL = "local"
_INLINE_BYTES = 1024  # larger results go to the store of objects and never through the driver
_START_SECONDS = 180.0
_AHEAD = 2  # shards that wait at each worker; the rest is kept back


class RayExecutor:
    """Runs tasks in the processes of a Ray cluster.

    Args:
        address: "local" starts one on this machine; else a cluster's, on whose machines phirt is installed
            and the files have the same paths.
        workers: how many; None for a worker on each core.
        retries: how often a task is run again when its process dies.
    """

    def __init__(self, address: str = LOCAL, workers: int | None = None, *, retries: int = 3) -> None:
        self.traffic = Traffic()
        self._end = None if ray.is_initialized() else start(address, workers)
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        wanted = workers or cores
        where = "on this machine" if address == LOCAL else f"at {address}"
        self.name = f"Ray {where}, {wanted} worker{'s' * (wanted > 1)}"
        actor = ray.remote(_Worker).options(
            num_cpus=min(1.0, cores / wanted), max_restarts=-1, max_task_retries=retries
        )
        self._workers = [actor.remote() for _ in range(wanted)]
        self._next = 0
        self._wait_for_workers()

    def limited(self, workers: int) -> RayExecutor:
        """An executor of the first of these workers alone; what it has is closed with this one."""
        few = copy.copy(self)
        few.traffic, few._next, few._end = Traffic(), 0, None
        few._workers = self._workers[:workers]
        return few

    def submit(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> tuple[Handle, ...]:
        """See Executor."""
        self._next = (self._next + 1) % len(self._workers)
        return self._submit_to(self._next, function, arguments, returns)

    def collect(self, handles: Sequence[Handle]) -> list[Any]:
        """See Executor."""
        values = _get([handle.reference for handle in handles])
        self.traffic.collected_bytes += sum(map(size_of, values))
        return values

    def map(self, function: Callable[..., Any], items: Sequence[Any], done: Done) -> list[Any]:
        """See Executor."""
        results: dict[int, Any] = {}
        running: dict[Any, tuple[int, int]] = {}  # the item and its worker
        waiting = list(range(len(items)))[::-1]
        free = list(range(len(self._workers))) * _AHEAD
        while waiting or running:
            while waiting and free:
                number, worker = waiting.pop(), free.pop(0)
                (handle,) = self._submit_to(worker, function, (items[number],), 1)
                running[handle.reference] = number, worker
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            number, worker = running.pop(ready)
            free.append(worker)
            (results[number],) = self.collect([Handle(ready)])
            done(len(results), len(items))
        return [results[number] for number in range(len(items))]

    def close(self) -> None:
        """See Executor."""
        self._workers = []  # nobody's any more, they end when they are done
        if self._end is not None:
            self._end()

    def _wait_for_workers(self) -> None:
        """A cluster whose cores are all taken would let everything wait for ever, without a word."""
        try:
            ray.get([worker.call.remote(os.getpid) for worker in self._workers], timeout=_START_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            wanted = len(self._workers)
            self.close()
            raise ConfigError(
                f"{wanted} workers did not start within {_START_SECONDS:.0f} s: the cluster's cores may be "
                "taken; ask for fewer with --workers"
            ) from error

    def _submit_to(
        self, worker: int, function: Callable[..., Any], arguments: Sequence[Any], returns: int
    ) -> tuple[Handle, ...]:
        count(self.traffic, arguments)
        given = [one.reference if isinstance(one, Handle) else one for one in arguments]
        result = self._workers[worker].call.options(num_returns=returns).remote(function, *given)
        return (Handle(result),) if returns == 1 else tuple(map(Handle, result))


class _Worker:
    """What runs in each process."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def start(address: str, workers: int | None) -> Callable[[], None]:
    """Starts a cluster on this machine, or joins the one at the address, for all executors that are made from
    now on. Returns what ends that.

    Raises:
        ConfigError: there is none at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == LOCAL:
            inline = {"max_direct_call_object_size": _INLINE_BYTES}
            ray.init(address=LOCAL, num_cpus=workers, include_dashboard=False, _system_config=inline, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # it raises many kinds, RuntimeError and ConnectionError among them
        raise ConfigError(
            f"no Ray cluster at {address}: {first_line(error)}; give the address of one that runs, or {LOCAL}"
        ) from error
    return ray.shutdown  # type: ignore[no-any-return]


def _get(references: list[Any]) -> list[Any]:
    try:
        values: list[Any] = ray.get(references)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, PhirtError | OSError) else error) from None
    except ray.exceptions.RayError as error:
        raise WorkerLostError(
            f"a task's process was lost more often than it is run again: {first_line(error)}; look at the "
            "machine's memory, and give the same command again: what is done is kept"
        ) from error
    return values
