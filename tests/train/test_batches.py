"""Batches by workers are those of the training process, bit for bit; what workers meet with is one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phirt.errors import ConfigError
from phirt_train.batches import Batches, count_workers
from phirt_train.objective import Share, shares_of
from phirt_train.processes import Processes
from phirt_train.progress import ignore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers are forked")


@pytest.mark.parametrize("first", [0, 3])
def test_batches_are_the_same_bit_for_bit(toy: Any, first: int) -> None:
    stage = toy.toy_config(micro_batch=3)
    objective, shares = toy.ToyObjective(toy.ToyModel(), stage), shares_of(stage)
    made: dict[int, list[Any]] = {}
    for workers in (0, 2):
        batches = Batches(objective, shares, 7, workers)
        made[workers] = [list(batches.of(step)) for step in range(first, 7)]
        batches.close()
        torch.manual_seed(1)
        list(Batches(objective, shares, 7, workers).of(0))
        made[workers].append(torch.rand(4))  # what dropout draws from is left alone
    assert torch.equal(made[0].pop(), made[2].pop())
    for here, ahead in zip(made[0], made[2], strict=True):
        assert [step for _, step in here] == [step for _, step in ahead]
        assert all(torch.equal(one, other) for (one, _), (other, _) in zip(here, ahead, strict=True))


def test_a_stage_with_workers_ends_with_the_same_weights(toy: Any, tmp_path: Path) -> None:
    runs = []
    for workers in (0, 2):
        run = toy.toy_run(tmp_path / str(workers), toy.toy_config(workers=workers, micro_batch=4))
        run.run(ignore)
        runs.append(run)
    for name, parameter in runs[0].parameters.items():
        assert torch.equal(parameter, runs[1].parameters[name]), name
    assert not multiprocessing.active_children()


class _Objective:
    """Does something in the worker that makes a certain step."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def prepare(self, step: int, share: Share) -> int:
        if step == 2:
            self._act()
        return step


def test_a_worker_that_is_killed_is_one_line() -> None:
    batches = Batches(_Objective(lambda: os.kill(os.getpid(), signal.SIGKILL)), [Share()], 9, 1)
    with pytest.raises(ConfigError, match=r"a process that makes batches was ended .*workers = 0") as error:
        for step in range(9):
            list(batches.of(step))
    assert "\n" not in str(error.value)


def test_what_a_worker_refuses_is_said_as_here() -> None:
    def refuse() -> None:
        raise ConfigError("a.jsonl line 3: no picture; correct the path")

    batches = Batches(_Objective(refuse), [Share()], 9, 2)
    with pytest.raises(ConfigError) as error:
        for step in range(9):
            list(batches.of(step))
    assert str(error.value) == "a.jsonl line 3: no picture; correct the path"
    batches.close()


def test_ctrl_c_is_left_to_the_training_process(toy: Any, tmp_path: Path) -> None:
    """A terminal sends it to workers too; they go on, and the step in hand ends."""

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    batches = Batches(_Objective(interrupt), [Share()], 5, 1)
    assert [list(batches.of(step)) for step in range(5)] == [[step] for step in range(5)]
    batches.close()


def test_workers_are_the_cores_that_are_left_over(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(**values: Any) -> int:
        return count_workers(toy.toy_config(**{"steps": 1000, **values}), torch.nn.Linear(1, 1), Processes())

    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(threads + 3)), raising=False)
    assert (count(), count(workers=7), count(steps=9), count(steps=9, workers=7)) == (3, 7, 0, 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(threads)), raising=False)
    assert count() == 0
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert count(workers=7) == 0
