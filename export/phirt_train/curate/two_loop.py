"""The two naive ways to carry out L-BFGS' two loops over distributed vectors, which the vector-free one is
measured against.

`TwoLoopByPasses` leaves vectors where they lie and needs 4m + 2 passes one after another for a direction,
half of them inner products. `TwoLoopOnDriver` needs two, but brings every gradient, every pair and every
direction through the driver, which must hold 2m + 1 whole vectors. Knows the oracle's verbs, the second one
vectors' numbers too.
"""

from __future__ import annotations

import itertools

import numpy as np

from phirt_train.curate.minimize import MIN_CURVATURE, Direction
from phirt_train.curate.vectors import Floats, Vector, VectorSpace, tree_sum


class TwoLoopByPasses:
    """One pass for each line of the two loops."""

    def __init__(self, space: VectorSpace, history: int) -> None:
        self._space = space
        self._history = history
        self._pairs: list[tuple[Vector, Vector, float, float]] = []  # s, y, s.y, y.y

    def learn(self, step: Vector, change: Vector) -> None:
        """See DirectionRule."""
        curvature, squared = self._space.dot([(step, change), (change, change)])
        if curvature > MIN_CURVATURE * squared:
            self._pairs = [*self._pairs, (step, change, curvature, squared)][-self._history :]

    def direction(self, gradient: Vector) -> Direction:
        """See DirectionRule."""
        space = self._space
        (rest,) = space.combine([(-1.0, gradient)])
        alphas = []
        for step, change, curvature, _ in reversed(self._pairs):
            (product,) = space.dot([(step, rest)])
            alphas.append(product / curvature)
            (rest,) = space.combine([(1.0, rest), (-alphas[-1], change)])
        if self._pairs:
            *_, curvature, squared = self._pairs[-1]
            (rest,) = space.combine([(curvature / squared, rest)])
        for (step, change, curvature, _), alpha in zip(self._pairs, reversed(alphas), strict=True):
            (product,) = space.dot([(change, rest)])
            (rest,) = space.combine([(1.0, rest), (alpha - product / curvature, step)])
        slope, squared_gradient = space.dot([(gradient, rest), (gradient, gradient)])
        return Direction(rest, slope, squared_gradient)


class TwoLoopOnDriver:
    """Both loops over numbers that the driver has fetched."""

    def __init__(self, space: VectorSpace, history: int) -> None:
        self._space = space
        self._history = history
        self._pairs: list[tuple[Floats, Floats]] = []

    def learn(self, step: Vector, change: Vector) -> None:
        """See DirectionRule."""
        s, y = self._fetch(step), self._fetch(change)
        if _dot(s, y) > MIN_CURVATURE * _dot(y, y):
            self._pairs = [*self._pairs, (s, y)][-self._history :]

    def direction(self, gradient: Vector) -> Direction:
        """See DirectionRule."""
        fetched = self._fetch(gradient)
        rest = -fetched
        alphas = []
        for s, y in reversed(self._pairs):
            alphas.append(_dot(s, rest) / _dot(s, y))
            rest -= alphas[-1] * y
        if self._pairs:
            s, y = self._pairs[-1]
            rest *= _dot(s, y) / _dot(y, y)
        for (s, y), alpha in zip(self._pairs, reversed(alphas), strict=True):
            rest += (alpha - _dot(y, rest) / _dot(s, y)) * s
        return Direction(self._send(rest), _dot(fetched, rest), _dot(fetched, fetched))

    def _fetch(self, vector: Vector) -> Floats:
        self._space.work.passes += 1
        return np.concatenate(self._space.executor.collect(vector.blocks))

    def _send(self, whole: Floats) -> Vector:
        self._space.work.passes += 1
        edges = self._space.edges
        blocks = [whole[start:stop] for start, stop in itertools.pairwise(edges)]
        return Vector(tuple(self._space.executor.submit(_kept, block)[0] for block in blocks))


def _dot(left: Floats, right: Floats) -> float:
    return float(tree_sum(left * right))


def _kept(block: Floats) -> Floats:
    return block
