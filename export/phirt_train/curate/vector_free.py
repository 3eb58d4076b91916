"""Vector-free L-BFGS (W. Chen, Z. Wang, J. Zhou, Large-scale L-BFGS using MapReduce, NIPS 2014).

The two loops of L-BFGS only ever combine the 2m + 1 vectors s_1 ... s_m, y_1 ... y_m and g. So they are
carried out on coefficients: the driver keeps the matrix of the vectors' inner products, (2m + 1) by (2m + 1)
scalars, and one combination at the end makes the direction. An iteration brings three new vectors, hence 6m
new products (g.g among them), all asked for in one pass.

Knows scalars and the oracle's two verbs. Never sees a vector's numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phirt_train.curate.minimize import MIN_CURVATURE, Direction, Space
from phirt_train.curate.vectors import Vector

_Pair = tuple[Vector, Vector]


@dataclasses.dataclass
class _Known:
    """A product of two vectors, which are kept so that no other vector can take over an identity."""

    left: Vector
    right: Vector
    product: float


class VectorFree:
    """The direction from inner products alone.

    Attributes:
        history: m, the most pairs that are kept.
        products: how many inner products each call of `direction` asked for.
        skipped: how many pairs were left out.
    """

    def __init__(self, space: Space, history: int) -> None:
        self._space = space
        self.history = history
        self.products: list[int] = []
        self.skipped = 0
        self._pairs: list[_Pair] = []
        self._candidate: _Pair | None = None
        self._known: dict[tuple[int, int], _Known] = {}

    def learn(self, step: Vector, change: Vector) -> None:
        """See DirectionRule."""
        self._candidate = step, change

    def direction(self, gradient: Vector) -> Direction:
        """See DirectionRule."""
        self.products.append(0)
        pairs = self._pairs
        if self._candidate is not None:
            pairs = [*self._pairs, self._candidate][-self.history :]
        matrix = self._matrix(pairs, gradient)
        if self._candidate is not None:
            newest, count = len(pairs) - 1, len(pairs)
            if matrix[newest, count + newest] <= MIN_CURVATURE * matrix[count + newest, count + newest]:
                pairs = self._pairs  # the oldest stays too
                self.skipped += 1
                matrix = self._matrix(pairs, gradient)
        self._pairs, self._candidate = pairs, None
        coefficients = two_loop_coefficients(matrix)
        (vector,) = self._space.combine(
            list(zip(coefficients.tolist(), _basis(pairs, gradient), strict=True))
        )
        return Direction(vector, float(matrix[-1] @ coefficients), float(matrix[-1, -1]))

    def _matrix(self, pairs: Sequence[_Pair], gradient: Vector) -> npt.NDArray[np.float64]:
        """All inner products of the basis; only those that are not known yet are asked for."""
        basis = _basis(pairs, gradient)
        needed = {
            (id(left), id(right)): (left, right)
            for left, right in itertools.combinations_with_replacement(basis, 2)
        }
        missing = {key: pair for key, pair in needed.items() if self._at(*key) is None}
        if missing:
            self.products[-1] += len(missing)
            found = self._space.dot(list(missing.values()))
            for (key, (left, right)), product in zip(missing.items(), found, strict=True):
                self._known[key] = _Known(left, right, product)
        alive = {id(vector) for vector in (*basis, *itertools.chain(*self._pairs))}
        self._known = {key: one for key, one in self._known.items() if alive.issuperset(key)}
        matrix = np.empty((len(basis), len(basis)))
        for row, column in itertools.combinations_with_replacement(range(len(basis)), 2):
            one = self._at(id(basis[row]), id(basis[column]))
            assert one is not None
            matrix[row, column] = matrix[column, row] = one.product
        return matrix

    def _at(self, left: int, right: int) -> _Known | None:
        return self._known.get((left, right)) or self._known.get((right, left))


def _basis(pairs: Sequence[_Pair], gradient: Vector) -> list[Vector]:
    return [*(step for step, _ in pairs), *(change for _, change in pairs), gradient]


def two_loop_coefficients(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The direction -H g as coefficients of s_1 ... s_m, y_1 ... y_m, g, from their matrix of products."""
    count = len(matrix) // 2
    coefficients = np.zeros(2 * count + 1)
    coefficients[-1] = -1.0
    alphas = np.zeros(count)
    for i in reversed(range(count)):
        alphas[i] = (coefficients @ matrix[:, i]) / matrix[i, count + i]
        coefficients[count + i] -= alphas[i]
    if count:
        coefficients *= matrix[count - 1, 2 * count - 1] / matrix[2 * count - 1, 2 * count - 1]
    for i in range(count):
        beta = (coefficients @ matrix[:, count + i]) / matrix[i, count + i]
        coefficients[i] += alphas[i] - beta
    return coefficients
