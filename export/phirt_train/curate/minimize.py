"""L-BFGS without its direction: evaluate, ask a rule for the direction, search along it, tell the rule what
was learnt.

The rules are in `vector_free` and `two_loop`; all of them give the same direction, and differ in what they
ask of the cluster for it. Knows directions, steps and when to stop. Knows nothing of what is minimised, and
no vector's numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from phirt_train.curate.line_search import Trial, strong_wolfe
from phirt_train.curate.vectors import Term, Vector

MIN_CURVATURE = 1e-10  # a pair with s.y at most this times y.y tells nothing of the curvature and is left out


class Space(Protocol):
    """The oracle: all that is ever done with vectors."""

    def dot(self, pairs: Sequence[tuple[Vector, Vector]]) -> list[float]:
        """The inner product of each pair."""

    def combine(self, *sums: Sequence[Term]) -> list[Vector]:
        """The sum of scaled vectors, for each list of terms."""


class Objective(Protocol):
    """A differentiable function of a vector."""

    def evaluate(self, weights: Vector) -> tuple[float, Vector]:
        """Value and gradient."""


@dataclasses.dataclass(frozen=True)
class Direction:
    """Where to search: the vector d, and the scalars g.d and g.g."""

    vector: Vector
    slope: float
    squared_gradient: float


class DirectionRule(Protocol):
    """Gives -H g, where H is made of at most m pairs of steps and gradient changes."""

    def direction(self, gradient: Vector) -> Direction:
        """The direction at a point with this gradient."""

    def learn(self, step: Vector, change: Vector) -> None:
        """Takes the last step s and the gradient's change y along it into account."""


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When it is enough.

    Attributes:
        iterations: at most so many.
        gradient: the gradient's length over the first one's.
        decrease: the value's relative decrease in one iteration.
    """

    iterations: int = 100
    gradient: float = 1e-6
    decrease: float = 1e-9


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iteration, for reports and tests: the value before it, its gradient's length, the trials it
    took.
    """

    number: int
    value: float
    gradient_norm: float
    step: float
    trials: int


@dataclasses.dataclass(frozen=True)
class Minimum:
    """Where it ended, and why: "gradient", "decrease", "iterations" or "line search"."""

    weights: Vector
    value: float
    iterations: int
    reason: str


Watch = Callable[[Iteration, Vector], None]


def unwatched(iteration: Iteration, weights: Vector) -> None:
    """The watch of a caller who does not ask for any."""


def minimize(
    objective: Objective,
    space: Space,
    rule: DirectionRule,
    start: Vector,
    stopping: Stopping,
    watch: Watch = unwatched,
) -> Minimum:
    """Minimises from `start`; `watch` is told each iteration and the weights that it ended with."""
    weights, (value, gradient) = start, objective.evaluate(start)
    first_norm: float | None = None
    for number in range(stopping.iterations):
        towards = rule.direction(gradient)
        norm = math.sqrt(towards.squared_gradient)
        first_norm = norm if first_norm is None else first_norm
        if norm <= stopping.gradient * first_norm or towards.slope >= 0:
            return Minimum(weights, value, number, "gradient")
        search = _Search(objective, space, weights, towards.vector)
        first = 1.0 if number else 1.0 / norm
        accepted = strong_wolfe(search.try_step, Trial(0.0, value, towards.slope), first)
        if accepted is None:
            return Minimum(weights, value, number, "line search")
        reached, new_gradient = search.points[accepted.step]
        step, change = space.combine(
            [(accepted.step, towards.vector)], [(1.0, new_gradient), (-1.0, gradient)]
        )
        rule.learn(step, change)
        watch(Iteration(number, value, norm, accepted.step, len(search.points)), reached)
        gained = value - accepted.value
        weights, value, gradient = reached, accepted.value, new_gradient
        if gained <= stopping.decrease * max(1.0, abs(value)):
            return Minimum(weights, value, number + 1, "decrease")
    return Minimum(weights, value, stopping.iterations, "iterations")


class _Search:
    """The objective along a direction; keeps what was evaluated, since one of it is accepted."""

    def __init__(self, objective: Objective, space: Space, weights: Vector, direction: Vector) -> None:
        self._objective = objective
        self._space = space
        self._weights = weights
        self._direction = direction
        self.points: dict[float, tuple[Vector, Vector]] = {}

    def try_step(self, step: float) -> Trial:
        (there,) = self._space.combine([(1.0, self._weights), (step, self._direction)])
        value, gradient = self._objective.evaluate(there)
        (slope,) = self._space.dot([(gradient, self._direction)])
        self.points[step] = there, gradient
        return Trial(step, value, slope)
