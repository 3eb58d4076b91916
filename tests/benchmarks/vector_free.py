"""What an iteration of L-BFGS costs by features and workers: vector-free, and in the two naive ways.

    python tests/benchmarks/vector_free.py --picture apps/docs/pages/vector-free.png

Rows are random, so that only their number and the features' matter. Prints a table in Markdown. Needs the
extras `scale` and `plot`; with 10 million features, 4 GB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

os.environ["HOME"] = tempfile.mkdtemp()  # Ray writes there

from phirt_train.curate.classifier import constant_targets
from phirt_train.curate.executor import Executor, InProcess, Traffic
from phirt_train.curate.logistic import LogisticLoss, RowBlock, SparseBlock
from phirt_train.curate.minimize import DirectionRule, Stopping, minimize
from phirt_train.curate.ray_executor import RayExecutor
from phirt_train.curate.two_loop import TwoLoopByPasses, TwoLoopOnDriver
from phirt_train.curate.vector_free import VectorFree
from phirt_train.curate.vectors import VectorSpace, Work, feature_edges

FEATURES, WORKERS = (10_000, 100_000, 1_000_000, 10_000_000), (1, 2, 4)
BLOCKS, ROW_BLOCKS, ROWS, NONZEROS = 4, 2, 1000, 100
HISTORY, WARM, MEASURED = 5, 6, 3  # the history is full when it is measured
RULES: dict[str, Callable[[VectorSpace, int], DirectionRule]] = {
    "vector-free": VectorFree,
    "two loops, by passes": TwoLoopByPasses,
    "two loops, on the driver": TwoLoopOnDriver,
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one iteration; the time is the least of several, since other programs run too."""

    rule: str
    features: int
    where: str
    workers: int
    seconds: float
    passes: float
    products: float
    driver_bytes: float


def sparse_block(seed: int, width: int) -> SparseBlock:
    """Random entries of one row block and one range of features."""
    random = np.random.default_rng(seed)
    count = ROWS * NONZEROS // BLOCKS
    rows = np.sort(random.integers(0, ROWS, count)).astype(np.int32)
    columns = (width * random.random(count) ** 4).astype(np.int32)  # few are frequent, as words are
    return SparseBlock((ROWS, width), rows, columns, random.normal(size=count).astype(np.float32))


def measure(executor: Executor, name: str, features: int, workers: int) -> Cost:
    """The cost of an iteration with a full history."""
    space = VectorSpace(executor, feature_edges(features, BLOCKS))
    widths = np.diff(space.edges).tolist()
    rows = [
        RowBlock(
            tuple(executor.submit(sparse_block, 10 * row + at, width)[0] for at, width in enumerate(widths)),
            executor.submit(constant_targets, ROWS, 1.0 if row % 2 else -1.0, 1.0)[0],
        )
        for row in range(ROW_BLOCKS)
    ]
    loss = LogisticLoss(space, rows, 1e-4, float(ROWS * ROW_BLOCKS))
    marks: list[tuple[float, Work, Traffic]] = []

    def watch(*_: object) -> None:
        marks.append(
            (time.perf_counter(), dataclasses.replace(space.work), dataclasses.replace(executor.traffic))
        )

    minimize(
        loss, space, RULES[name](space, HISTORY), space.zeros(), Stopping(WARM + MEASURED, 0, -1.0), watch
    )
    (_, before, sent), (_, after, received) = marks[WARM - 1], marks[-1]
    steps = len(marks) - WARM
    times = [later[0] - one[0] for one, later in itertools.pairwise(marks[WARM - 1 :])]
    return Cost(
        name,
        features,
        executor.name.split(",")[0],
        workers,
        min(times),
        (after.passes - before.passes) / steps,
        (after.products - before.products) / steps,
        (received.driver_bytes - sent.driver_bytes) / steps,
    )


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--features", type=int, nargs="*", default=FEATURES)
    options = parser.parse_args()
    costs = []
    for features in options.features:
        for rule in RULES:
            costs.append(measure(InProcess(), rule, features, 0))
            print(costs[-1], flush=True)
    executor = RayExecutor(workers=max(WORKERS))
    for features in options.features:
        measure(
            executor, "vector-free", features, max(WORKERS)
        )  # memory that is shared costs time when it is new
        for workers in WORKERS:
            for rule in RULES:
                costs.append(measure(executor.limited(workers), rule, features, workers))
                print(costs[-1], flush=True)
    executor.close()
    print("| features | where | way | seconds | passes | products | driver bytes |")
    print("|---|---|---|---|---|---|---|")
    for one in sorted(costs, key=lambda cost: (cost.features, cost.workers)):
        where = f"{one.workers} workers" if one.workers else "one process"
        print(
            f"| {one.features:,} | {where} | {one.rule} | {one.seconds:.3f} | {one.passes:.0f} | "
            f"{one.products:.0f} | {one.driver_bytes:,.0f} |"
        )
    if options.picture:
        draw(costs, options.picture)


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Time, and what passes through the driver, by features."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
        time_axes, byte_axes = figure.subplots(1, 2)
        for color, rule in enumerate(RULES):
            for workers, style in zip((0, *WORKERS), (":", "-.", "--", "-"), strict=True):
                chosen = [one for one in costs if one.rule == rule and one.workers == workers]
                features = [one.features for one in chosen]
                label = rule if workers == max(WORKERS) else None
                time_axes.plot(
                    features,
                    [one.seconds for one in chosen],
                    style,
                    color=f"C{color}",
                    marker=".",
                    label=label,
                )
                if workers == max(WORKERS):
                    driver = [one.driver_bytes for one in chosen]
                    byte_axes.plot(features, driver, "-", color=f"C{color}", marker="o", label=label)
        for axes, meaning in ((time_axes, "seconds an iteration"), (byte_axes, "bytes through the driver")):
            axes.set(xscale="log", yscale="log", xlabel="features", ylabel=meaning)
        time_axes.set_title("dotted: one process; then 1, 2 and 4 workers", fontsize=8)
        byte_axes.legend(frameon=False, fontsize=8)
        figure.savefig(path)


if __name__ == "__main__":
    main()
