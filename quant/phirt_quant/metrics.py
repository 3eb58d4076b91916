"""Measures of a model on a task, each with its standard error, and how far two models are apart.

Knows what came out for each item. Knows nothing of tasks, models or text. Names and definitions are those of
lm-evaluation-harness.

A measure is a smooth function of means over items, so its error follows from how much each item moves it (the
delta method); between two models on the same items, from how much each item moves the difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What came out for a question: of each continuation the log-likelihood in nats, whether it was the
    greedy one, and its characters and bytes without the space before it; and which was right.
    """

    nats: tuple[float, ...]
    greedy: tuple[bool, ...]
    characters: tuple[int, ...]
    bytes: tuple[int, ...]
    gold: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came out for an exercise."""

    text: str
    is_right: bool


Outcome = Choices | Answer


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A measure and, for each item, how much it moves it: float64 [items], of any mean."""

    value: float
    influence: _Array

    @property
    def standard_error(self) -> float | None:
        """Of the value; None for a single item."""
        return _standard_error(self.influence)

    def minus(self, other: Estimate) -> tuple[float, float | None]:
        """This less another model's on the same items, and the standard error of that."""
        return self.value - other.value, _standard_error(self.influence - other.influence)


def estimate(metric: str, outcomes: Sequence[Outcome]) -> Estimate:
    """One of METRICS over what came out for all items, of which there is one at least."""
    return METRICS[metric](outcomes)


def _standard_error(influence: _Array) -> float | None:
    if len(influence) < 2:
        return None
    return float(influence.std(ddof=1) / math.sqrt(len(influence)))


def _mean_of(score: Callable[[Choices], float]) -> Callable[[Sequence[Outcome]], Estimate]:
    """The mean of each question's score."""

    def metric(outcomes: Sequence[Outcome]) -> Estimate:
        scores = np.array([score(outcome) for outcome in _choices(outcomes)], np.float64)
        return Estimate(float(scores.mean()), scores)

    return metric


def _choices(outcomes: Sequence[Outcome]) -> list[Choices]:
    chosen = [outcome for outcome in outcomes if isinstance(outcome, Choices)]
    assert len(chosen) == len(outcomes) > 0
    return chosen


def _is_best(scores: Sequence[float], gold: int) -> float:
    return float(int(np.argmax(scores)) == gold)


def _normalised(choices: Choices, lengths: Sequence[int]) -> float:
    return _is_best([nats / max(1, n) for nats, n in zip(choices.nats, lengths, strict=True)], choices.gold)


def _gold(choices: Sequence[Choices]) -> tuple[_Array, _Array]:
    """Nats and bytes of the right continuations."""
    pairs = [(c.nats[c.gold], c.bytes[c.gold]) for c in choices]
    nats, sizes = np.array(pairs, np.float64).T
    return nats, sizes


def _perplexity(outcomes: Sequence[Outcome]) -> Estimate:
    nats, _ = _gold(_choices(outcomes))
    value = float(np.exp(-nats.mean()))
    return Estimate(value, -value * nats)


def _bits_per_byte(outcomes: Sequence[Outcome]) -> Estimate:
    nats, sizes = _gold(_choices(outcomes))
    bits = -nats / math.log(2)
    value = float(bits.sum() / sizes.sum())
    return Estimate(value, (bits - value * sizes) / sizes.mean())


def _exact_match(outcomes: Sequence[Outcome]) -> Estimate:
    right = np.array([isinstance(outcome, Answer) and outcome.is_right for outcome in outcomes], np.float64)
    return Estimate(float(right.mean()), right)


METRICS: Mapping[str, Callable[[Sequence[Outcome]], Estimate]] = {
    "acc": _mean_of(lambda c: _is_best(c.nats, c.gold)),
    "acc_norm": _mean_of(lambda c: _normalised(c, c.characters)),
    "acc_bytes": _mean_of(lambda c: _normalised(c, c.bytes)),
    "greedy_acc": _mean_of(lambda c: float(c.greedy[c.gold])),
    "perplexity": _perplexity,
    "bits_per_byte": _bits_per_byte,
    "exact_match": _exact_match,
}
