"""Tasks in one process and on Ray: results, progress, errors; a process that dies costs its shard alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from phirt.errors import ConfigError
from phirt_train.curate.executor import Executor, InProcess, size_of, tree_reduce
from phirt_train.curate.logistic import add

if TYPE_CHECKING:
    from phirt_train.curate.ray_executor import RayExecutor


def _square(number: int) -> int:
    return number * number


def _pair(number: int) -> tuple[int, int]:
    return number, -number


def _sum(*numbers: int) -> int:
    return sum(numbers)


def _fail(number: int) -> int:
    raise ConfigError(f"{number} is wrong; correct it")


def _die_once(task: tuple[str, int]) -> int:
    """Leaves a mark for each attempt; the first one at shard 2 kills its own process, once the driver has the
    shards before it: what dies with its answer on the way is done again too.
    """
    folder, number = task
    attempts = Path(folder) / f"shard-{number}"
    with attempts.open("a") as marks:
        marks.write("x")
    if number == 2 and attempts.stat().st_size == 1:
        while not (Path(folder) / "two-are-done").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def _environment(name: str) -> str | None:
    return os.environ.get(name)


def _everything(executor: Executor) -> None:
    seen: list[tuple[int, int]] = []
    assert executor.map(_square, range(9), lambda *at: seen.append(at)) == [n * n for n in range(9)]
    assert seen == [(n, 9) for n in range(1, 10)]
    assert executor.map(_square, [], lambda *at: None) == []
    left, right = executor.submit(_pair, 5, returns=2)
    (total,) = executor.submit(_sum, left, 10, right, left)
    assert executor.collect([total, left]) == [15, 5]
    with pytest.raises(ConfigError, match=r"^7 is wrong; correct it$"):
        executor.map(_fail, [7], lambda *at: None)


def test_in_one_process() -> None:
    _everything(InProcess())


def test_on_ray(four_workers: RayExecutor) -> None:
    _everything(four_workers.limited(2))


def test_a_killed_worker_costs_its_shard_alone(four_workers: RayExecutor, tmp_path: Path) -> None:
    def done(count: int, total: int) -> None:
        if count == 2:
            (tmp_path / "two-are-done").touch()

    tasks = [(str(tmp_path), number) for number in range(6)]
    assert four_workers.limited(1).map(_die_once, tasks, done) == [n * n for n in range(6)]
    attempts = {path.name: path.stat().st_size for path in tmp_path.glob("shard-*")}
    assert attempts == {f"shard-{n}": 2 if n == 2 else 1 for n in range(6)}


def test_ray_reports_to_nobody(four_workers: RayExecutor) -> None:
    assert four_workers.map(_environment, ["RAY_USAGE_STATS_ENABLED"], lambda *at: None) == ["0"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_what_passes_through_the_driver_is_counted() -> None:
    executor = InProcess()
    (kept,) = executor.submit(np.zeros, 1000)
    (total,) = executor.submit(np.sum, kept)
    assert executor.collect([total]) == [0.0]
    assert (executor.traffic.sent_bytes, executor.traffic.collected_bytes, executor.traffic.tasks) == (
        8,
        8,
        2,
    )
    assert size_of({"a": (np.zeros(3), "four", 1.0)}) == 1 + 24 + 4 + 8


def test_parts_meet_in_the_same_order_whatever_the_arity() -> None:
    executor = InProcess()
    parts = [executor.submit(np.full, 3, float(n))[0] for n in range(37)]
    for arity in (2, 3, 8, 64):
        (found,) = executor.collect([tree_reduce(executor, add, parts, arity)])
        np.testing.assert_array_equal(found, np.full(3, 37 * 36 / 2))
