"""Which of several formats each matrix gets, so that all together cost least and fit a size.

Knows bytes and costs. Knows nothing of matrices, formats or how costs are measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# Sizes are counted in units, so that a table of this width for each matrix is all that is needed.
_MOST_UNITS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to store a matrix: its bytes, and what it costs in any measure that adds up over matrices."""

    bytes: int
    cost: float


def allocate(choices: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The index of one choice for each matrix: the least total cost in at most `budget` bytes.

    This is the multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004,
    chapter 11), solved exactly by dynamic programming over the bytes that are left beyond the smallest
    choices. Where a common divisor of these bytes would make more than 65,536 steps, each step is rounded up
    to a larger unit: the budget holds all the same, and less than a unit a matrix, and one more, is not used.

    Args:
        choices: for each matrix at least one.
        budget: at least the bytes of all smallest choices together.
    """
    smallest = [min(choice.bytes for choice in of) for of in choices]
    extras = [[choice.bytes - least for choice in of] for of, least in zip(choices, smallest, strict=True)]
    left = budget - sum(smallest)
    assert left >= 0, "the budget does not hold the smallest choices"
    unit = max(1, math.gcd(*(extra for of in extras for extra in of)))
    unit *= -(-min(left, sum(map(max, extras))) // unit // _MOST_UNITS) or 1
    steps = [[-(-extra // unit) for extra in of] for of in extras]
    capacity = min(left // unit, sum(map(max, steps)))
    return _solve(steps, [[choice.cost for choice in of] for of in choices], capacity)


def _solve(steps: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], capacity: int) -> list[int]:
    """Indices of least total cost whose steps are at most `capacity`; of equal ones, the fewer steps."""
    best = np.zeros(capacity + 1)  # by steps that may be used
    taken = []
    for of, prices in zip(steps, costs, strict=True):
        order = sorted(range(len(of)), key=lambda i: of[i])
        reached = np.full((len(of), capacity + 1), np.inf)
        for row, i in enumerate(order):
            if of[i] <= capacity:
                reached[row, of[i] :] = best[: capacity + 1 - of[i]] + prices[i]
        rows = reached.argmin(axis=0)
        best = reached[rows, np.arange(capacity + 1)]
        taken.append((order, rows.astype(np.uint8)))
    chosen, left = [], capacity
    for (order, rows), of in zip(reversed(taken), reversed(steps), strict=True):
        i = order[rows[left]]
        chosen.append(i)
        left -= of[i]
    return chosen[::-1]
