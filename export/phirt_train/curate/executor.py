"""Where tasks run: an interface of two verbs, and its implementation in this process.

A task is a function of a module with plain arguments and handles. What it returns stays where it ran, behind
a handle, until somebody collects it; other tasks take handles as arguments. So the same code runs in one
process and on many machines, and what passes through the driver can be counted.

Knows tasks, handles and bytes. Knows nothing of shards, documents or vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from phirt.errors import PhirtError

Done = Callable[[int, int], None]  # how many of how many tasks are done


class WorkerLostError(PhirtError):
    """A task's process died more often than it may, or the cluster is gone."""


@dataclasses.dataclass(frozen=True, eq=False)
class Handle:
    """What a task returned, wherever that lies; `reference` is the executor's own matter."""

    reference: Any


@dataclasses.dataclass
class Traffic:
    """What has passed through the driver since this was made.

    Attributes:
        tasks: how many were submitted.
        sent_bytes: of plain arguments, handles not counted.
        collected_bytes: of what was collected.
    """

    tasks: int = 0
    sent_bytes: int = 0
    collected_bytes: int = 0

    @property
    def driver_bytes(self) -> int:
        """Bytes that the driver held on their way out or in."""
        return self.sent_bytes + self.collected_bytes


class Executor(Protocol):
    """Runs tasks. Which of them run at the same time, and where, is its own matter; their results are not.

    Attributes:
        traffic: what has passed through the driver.
        name: where tasks run, for people.
    """

    traffic: Traffic
    name: str

    def submit(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> tuple[Handle, ...]:
        """Starts a task; one handle for each of the `returns` values of its result.

        Args:
            function: at the top level of a module; it must return the same for the same arguments, since it
                is run again where its process is lost.
            arguments: plain values, and handles, in whose place the function gets what they stand for.
        """

    def collect(self, handles: Sequence[Handle]) -> list[Any]:
        """The values behind the handles, in their order. Raises what a task raised, or WorkerLostError."""

    def map(self, function: Callable[..., Any], items: Sequence[Any], done: Done) -> list[Any]:
        """`function` of every item, in their order; `done` is told each time one has ended."""

    def close(self) -> None:
        """Ends what was started for the tasks."""


class InProcess:
    """Runs every task at once, here."""

    name = "one process"

    def __init__(self) -> None:
        self.traffic = Traffic()

    def submit(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> tuple[Handle, ...]:
        """See Executor."""
        count(self.traffic, arguments)
        given = [one.reference if isinstance(one, Handle) else one for one in arguments]
        result = function(*given)
        return (Handle(result),) if returns == 1 else tuple(map(Handle, result))

    def collect(self, handles: Sequence[Handle]) -> list[Any]:
        """See Executor."""
        values = [handle.reference for handle in handles]
        self.traffic.collected_bytes += sum(map(size_of, values))
        return values

    def map(self, function: Callable[..., Any], items: Sequence[Any], done: Done) -> list[Any]:
        """See Executor."""
        results = []
        for number, item in enumerate(items, 1):
            results += self.collect(self.submit(function, item))
            done(number, len(items))
        return results

    def close(self) -> None:
        """See Executor."""


def silent(done: int, total: int) -> None:
    """The report of a caller who does not ask for any."""


def count(traffic: Traffic, arguments: Sequence[Any]) -> None:
    """Counts a task that is submitted with these arguments."""
    traffic.tasks += 1
    traffic.sent_bytes += sum(map(size_of, arguments))


def size_of(value: Any) -> int:
    """Bytes of data in a value, without what Python adds; a handle is none."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, bool | int | float | np.generic):
        return 8
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, tuple | list | set | frozenset):
        return sum(map(size_of, value))
    if isinstance(value, dict):
        return sum(size_of(key) + size_of(item) for key, item in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Handle):
        return sum(size_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0


def tree_reduce(
    executor: Executor, function: Callable[..., Any], parts: Sequence[Handle], arity: int = 8
) -> Handle:
    """One handle from many: `function` of up to `arity` neighbours at a time, level by level. Which parts
    meet depends on their order alone, so that sums have the same bits wherever they are formed.
    """
    assert parts and arity > 1
    level = list(parts)
    while len(level) > 1:
        groups = [level[at : at + arity] for at in range(0, len(level), arity)]
        level = [one[0] if len(one) == 1 else executor.submit(function, *one)[0] for one in groups]
    return level[0]
