"""L2-regularised logistic regression over rows that lie in blocks: some rows by some features each.

    value = mean over rows of w_r log(1 + exp(-label margin)) + l2 / 2 |weights|^2

An evaluation is two rounds: every block's share of its rows' margins, added up over the feature ranges; then
every block's share of the gradient, added up over the rows. Knows blocks, labels and sums in a fixed order.
Knows nothing of words, and nothing of how the function is minimised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phirt_train.curate.executor import Executor, Handle, tree_reduce
from phirt_train.curate.vectors import Floats, Vector, VectorSpace, tree_sum


@dataclasses.dataclass(frozen=True, eq=False)
class SparseBlock:
    """Some rows by some features: where a value is not 0. Both index from the block's own corner.

    Attributes:
        shape: rows, features.
        rows, columns: int32, sorted by row.
        values: float32.
    """

    shape: tuple[int, int]
    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    def times(self, weights: Floats) -> Floats:
        """The block by a vector of its features: float64 [rows]. Added one by one, in the order of rows."""
        shares: Floats = self.values * weights[self.columns]
        return _sums(self.rows, shares, self.shape[0])

    def transposed_times(self, residuals: Floats) -> Floats:
        """A vector of its rows by the block: float64 [features]."""
        shares: Floats = self.values * residuals[self.rows]
        return _sums(self.columns, shares, self.shape[1])


@dataclasses.dataclass(frozen=True, eq=False)
class RowBlock:
    """Some rows behind handles: their sparse block for every feature range, and their targets.

    Attributes:
        features: a SparseBlock a feature range.
        targets: float64 [2, rows]: labels of -1 and 1, and the rows' weights.
    """

    features: tuple[Handle, ...]
    targets: Handle


class LogisticLoss:
    """The objective; `total_weight` is the sum of all rows' weights."""

    def __init__(self, space: VectorSpace, rows: Sequence[RowBlock], l2: float, total_weight: float) -> None:
        self._space = space
        self._rows = tuple(rows)
        self._l2 = l2
        self._total = total_weight

    def evaluate(self, weights: Vector) -> tuple[float, Vector]:
        """Value and gradient; two passes."""
        executor: Executor = self._space.executor
        self._space.work.passes += 2
        losses, residuals = [], []
        for block in self._rows:
            shares = [
                executor.submit(_margins, features, of)[0]
                for features, of in zip(block.features, weights.blocks, strict=True)
            ]
            margins = tree_reduce(executor, add, shares)
            loss, residual = executor.submit(_loss, margins, block.targets, self._total, returns=2)
            losses.append(loss)
            residuals.append(residual)
        gradients, penalties = [], []
        for number, of in enumerate(weights.blocks):
            shares = [
                executor.submit(_gradient, block.features[number], residual)[0]
                for block, residual in zip(self._rows, residuals, strict=True)
            ]
            summed = tree_reduce(executor, add, shares)
            gradient, penalty = executor.submit(_regularised, summed, of, self._l2, returns=2)
            gradients.append(gradient)
            penalties.append(penalty)
        scalars = np.array(executor.collect([*losses, *penalties]))
        return float(tree_sum(scalars)), Vector(tuple(gradients))


def add(*parts: Floats) -> Floats:
    """The sum of arrays, in a fixed tree order."""
    return tree_sum(np.stack(parts))


def _sums(places: npt.NDArray[np.int32], values: Floats, count: int) -> Floats:
    # Without a single value numpy counts in whole numbers.
    return np.asarray(np.bincount(places, values, minlength=count), dtype=np.float64)


def _margins(features: SparseBlock, weights: Floats) -> Floats:
    return features.times(weights)


def _loss(margins: Floats, targets: Floats, total: float) -> tuple[float, Floats]:
    """The rows' share of the value, and its derivative by their margins."""
    labels, weights = targets
    signed = labels * margins
    losses = weights * np.logaddexp(0.0, -signed)
    probability = np.exp(-np.logaddexp(0.0, signed))  # of the other label
    return float(tree_sum(losses)) / total, -(labels * weights * probability) / total


def _gradient(features: SparseBlock, residuals: Floats) -> Floats:
    return features.transposed_times(residuals)


def _regularised(gradient: Floats, weights: Floats, l2: float) -> tuple[Floats, float]:
    return gradient + l2 * weights, 0.5 * l2 * float(tree_sum(weights * weights))
