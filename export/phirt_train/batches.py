"""Batches made ahead of the steps that learn from them, by processes of their own.

Knows steps, shares and worker processes. Knows nothing of what a batch holds. Batches are functions of step
and share, so it makes no difference who makes them, and when.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from phirt.errors import ConfigError, PhirtError
from phirt_export.reference import Model
from phirt_train.objective import Objective, Share
from phirt_train.processes import Processes
from phirt_train.stage import StageConfig

_MOST = 4  # workers where nothing is said
_LEAST_STEPS = 50  # a stage of less is over before its workers pay
_AHEAD = 2  # batches that each worker makes ahead


def count_workers(stage: StageConfig, model: torch.nn.Module, processes: Processes) -> int:
    """How many processes make a process' batches: as the stage says, else by the cores left over.

    What frozen towers see is kept in a store that one process writes: such models' batches are made in the
    training process itself, as all are where a process cannot be forked.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return 0
    if isinstance(model, Model) and (model.config.photo or model.config.whisper):
        return 0
    if stage.workers is not None:
        return stage.workers
    if stage.steps < _LEAST_STEPS:
        return 0
    cores = os.cpu_count() if not hasattr(os, "sched_getaffinity") else len(os.sched_getaffinity(0))
    own = (cores or 1) // processes.count
    busy = torch.get_num_threads() if processes.device.type == "cpu" else 1
    return max(0, min(_MOST, own - busy))


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What a worker could not make, and why."""

    error: PhirtError


class _Parts(Dataset[Any]):
    """The parts of all steps, one after another."""

    def __init__(self, objective: Objective, shares: Sequence[Share]) -> None:
        self._objective, self._shares = objective, shares

    def __getitem__(self, index: int) -> Any:
        step, number = divmod(index, len(self._shares))
        try:
            return self._objective.prepare(step, self._shares[number])
        except PhirtError as error:  # the loader would make a traceback of it
            return _Failure(error)


class Batches:
    """The batches of a process, step after step from the first that is asked for.

    Args:
        shares: what of a step this process takes, a share a forward pass.
        steps: how many steps there are.
        workers: processes that make them; 0 for this one, as they are asked for.
    """

    def __init__(self, objective: Objective, shares: Sequence[Share], steps: int, workers: int) -> None:
        self._objective, self._shares, self._steps, self._workers = objective, shares, steps, workers
        self._made: Iterator[Any] | None = None

    def of(self, step: int) -> Iterator[Any]:
        """What a step learns from, part by part.

        Raises:
            ConfigError: a worker was ended from outside.
        """
        if not self._workers:
            yield from (self._objective.prepare(step, share) for share in self._shares)
            return
        if self._made is None:
            self._made = self._start(step)
        for _ in self._shares:
            try:
                batch = next(self._made)
            except RuntimeError as error:
                raise lost_worker(error) or error from error
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch

    def _start(self, step: int) -> Iterator[Any]:
        count = len(self._shares)
        loader = DataLoader(
            _Parts(self._objective, self._shares),
            batch_size=None,
            sampler=range(step * count, self._steps * count),
            collate_fn=_as_it_is,
            num_workers=self._workers,
            prefetch_factor=_AHEAD,
            multiprocessing_context="fork",
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # the loader draws a seed: dropout's own generator is left alone
        )
        return iter(loader)

    def close(self) -> None:
        """End the workers."""
        self._made = None


def lost_worker(error: RuntimeError) -> ConfigError | None:
    """An error for the user where a worker was ended from outside; torch reports it wherever training is."""
    if "DataLoader worker" not in str(error):
        return None
    return ConfigError(
        f"a process that makes batches was ended ({' '.join(str(error).split())}); start again to continue, "
        "with more memory, or with workers = 0 in the stage"
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals(_number: int) -> None:
    """Who started training decides what Ctrl-C does; a worker ends when it is told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_DFL)
