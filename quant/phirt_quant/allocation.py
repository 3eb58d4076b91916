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
    left = budget - sum(min(choice.bytes for choice in of) for of in choices)
    assert left >= 0, "the budget does not hold the smallest choices"
    table = _Table(choices, left)
    return table.picked(table.capacity)


def allocate_within(choices: Sequence[Sequence[Choice]], most_cost: float) -> list[int]:
    """The index of one choice for each matrix: the fewest bytes (to the unit of `allocate`) whose costs
    total at most `most_cost`; where none do, the least total cost.
    """
    table = _Table(choices, sum(max(choice.bytes for choice in of) for of in choices))
    enough = np.flatnonzero(table.costs <= max(most_cost, table.costs[-1]))
    return table.picked(int(enough[0]))


class _Table:
    """The least cost for each number of units beyond the smallest choices, and the choices that give it.

    Attributes:
        capacity: the units that `left` bytes are, as far as they can be used.
        costs: float64 [capacity + 1], falling.
    """

    def __init__(self, choices: Sequence[Sequence[Choice]], left: int) -> None:
        smallest = [min(choice.bytes for choice in of) for of in choices]
        both = zip(choices, smallest, strict=True)
        extras = [[choice.bytes - least for choice in of] for of, least in both]
        unit = max(1, math.gcd(*(extra for of in extras for extra in of)))
        unit *= -(-min(left, sum(map(max, extras))) // unit // _MOST_UNITS) or 1
        self._steps = [[-(-extra // unit) for extra in of] for of in extras]
        self.capacity = min(left // unit, sum(map(max, self._steps)))
        self.costs = np.zeros(self.capacity + 1)  # by steps that may be used
        self._taken = []
        for of, steps in zip(choices, self._steps, strict=True):
            order = sorted(range(len(of)), key=steps.__getitem__)  # of equal costs, the fewer steps
            reached = np.full((len(of), self.capacity + 1), np.inf)
            for row, i in enumerate(order):
                if steps[i] <= self.capacity:
                    reached[row, steps[i] :] = self.costs[: self.capacity + 1 - steps[i]] + of[i].cost
            rows = reached.argmin(axis=0)
            self.costs = reached[rows, np.arange(self.capacity + 1)]
            self._taken.append((order, rows.astype(np.uint8)))

    def picked(self, left: int) -> list[int]:
        """The index of each matrix's choice where `left` units may be used."""
        chosen = []
        for steps, (order, rows) in zip(reversed(self._steps), reversed(self._taken), strict=True):
            i = order[rows[left]]
            chosen.append(i)
            left -= steps[i]
        return chosen[::-1]
