"""Guesses what comes next from what was already said, and how much of a guess is worth a run.

Knows token ids, times and counts. Knows nothing of graphs, caches or text; `engine` runs the drafts.

Text repeats itself, and answers quote their prompts: after a few ids that occurred before, those that
followed them then may follow again (prompt lookup; the longest match of LZ77). Several ids in one run cost
little more than one, and a drafted id counts only where the id that is chosen at its place, from the model's
own logits, is the same. So answers do not depend on drafts, be they greedy or sampled: each id is chosen from
its own distribution, with the generator's draw that it has without speculation. A drafted id of probability p
is thus taken with probability p, as in speculative sampling (arXiv 2211.17192) for a draft that is certain.

That is exact up to rounding: kernels may add in another order in a run of several positions, as in a prefill,
and where activations are rounded to int8 a last bit can become a step of that. Two ids with all but equal
logits may then change places: in one or two of a hundred answers of the nano model, with logits less than 0.1
apart. Over keys and values of int8, and with weights in blocks of 32, kernels add in one order however many
positions run, and not a bit changes (measured with AVX-512).
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Collection, Iterable

from phirt.generate.prompt_lookup import PromptLookup

RUN_SIZES = (1, 2, 4, 8, 12, 16)  # positions of one run: the id that is known, and drafted ones
LONGEST_RUN = RUN_SIZES[-1]

# Log-odds that the expected id comes by the class of the match, before anything is known of the text: between
# those of free text and those of copied text, as measured on pages of an encyclopedia.
_MATCH_CLASSES = (-1, 1, 2, 3, 4, 6, 10, 16)  # the least match length of each class but the first
_PRIOR_LOG_ODDS = (-4.5, -2.5, -0.4, 0.0, 0.2, 0.6, 0.8, 1.4, 2.2)
_LEARNING_RATE = 0.5  # step of what all classes share
_CLASS_LEARNING_RATE = 0.1  # step of each class

_PRIOR_SLOPE = 0.25  # decode steps that each further position of a run costs, before any is measured
_TIME_WEIGHT = 0.3  # of the newest run in the estimate of its size
_WEIGHT_FOR_OTHER_SIZES = 1 / 32  # of what a run shows, for the estimates of other sizes
_DECAY = 1 / 4096  # by each plain step, what runs have cost
_LEAST_CHANCE = 0.02  # a place that likely to come true is the last that is thought of
_LEAST_GAIN = (
    1.1  # the least gain for which a draft is run: estimates are noisy, and a size's first run is slow
)


class RunCosts:
    """What runs of several positions cost on one engine, in decode steps, learned from every run. `clock`
    returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._step: float | None = None  # seconds of a run of one position
        self._slope = _PRIOR_SLOPE
        self._costs = {1: 1.0}  # of the sizes that have been run

    def record(self, positions: int, seconds: float) -> None:
        """Notes what a run of so many positions took."""
        if positions not in RUN_SIZES or seconds <= 0:
            return
        if positions == 1:
            self._step = _smoothed(self._step or seconds, seconds)
            self._pull_towards(_DECAY, _PRIOR_SLOPE)
        elif self._step is not None:
            cost = _smoothed(self.measured(positions), seconds / self._step)
            self._slope += _TIME_WEIGHT * ((cost - 1) / (positions - 1) - self._slope)
            self._pull_towards(_WEIGHT_FOR_OTHER_SIZES, self._slope)
            self._costs[positions] = cost

    def measured(self, size: int) -> float:
        """What a run costs; of a size that was never run, what the others let expect."""
        return self._costs.get(size, 1 + self._slope * (size - 1))

    def _pull_towards(self, weight: float, slope: float) -> None:
        """Moves all costs towards those of a slope, or a size that was slow once would not be run again."""
        for size, cost in self._costs.items():
            self._costs[size] = cost + weight * (1 + slope * (size - 1) - cost)


def usual_cost(size: int) -> float:
    """What a run costs where nothing is measured, in decode steps: 4 positions 1.75, 8 of them 2.75."""
    return 1 + _PRIOR_SLOPE * (size - 1)


def _smoothed(known: float, measured: float) -> float:
    """The estimate after one more time. A pause of the machine must not count for long, so nothing counts for
    more than twice what was known.
    """
    return known + _TIME_WEIGHT * (min(measured, 2 * known) - known)


class DraftPolicy:
    """How many positions to run at once, from what a run of a size costs in decode steps and from how often
    expected ids have come true in this answer.

    Where a text copies, two ids that agree promise nearly as much as ten, and where it does not, ten promise
    little more than two. So the chance is a logistic regression on the class of the match with an intercept
    for the text, which learns faster (stochastic gradient of the log-likelihood). An expected id is compared
    with the chosen one whether it was run or not, so that drafting begins again by itself where a text begins
    to repeat itself, and nothing is ever run to find out.
    """

    def __init__(self, cost: Callable[[int], float]) -> None:
        self._cost = cost
        self._intercept = 0.0
        self._classes = list(_PRIOR_LOG_ODDS)

    def update(self, match_length: int, was_expected: bool) -> None:
        """Notes whether the id after a match of so many ids was the expected one."""
        error = was_expected - self._chance(match_length)
        self._intercept += _LEARNING_RATE * error
        self._classes[_class_of(match_length)] += _CLASS_LEARNING_RATE * error

    def run_size(self, match_length: int, longest: int) -> int:
        """The positions, one of RUN_SIZES up to `longest`, that give most ids a second where the end of the
        sequence has a match of `match_length` ids. 1 is a plain decode step.
        """
        best, best_gain = 1, _LEAST_GAIN
        ids, likely, drafted = 1.0, 1.0, 0
        for size in RUN_SIZES[1:]:
            if size > longest:
                break
            while drafted < size - 1:
                likely *= self._chance(match_length)
                ids += likely
                match_length = max(match_length, 0) + 1
                drafted += 1
            gain = ids / self._cost(size)
            if gain > best_gain:
                best, best_gain = size, gain
            if likely < _LEAST_CHANCE:
                break
        return best

    def _chance(self, match_length: int) -> float:
        """How likely the expected id comes after a match of so many ids."""
        return 1 / (1 + math.exp(-self._intercept - self._classes[_class_of(match_length)]))


def _class_of(match_length: int) -> int:
    return bisect.bisect_right(_MATCH_CLASSES, match_length)


class Speculation:
    """The drafts of one answer. `drafted` counts the ids that were run as drafts, `accepted` those of them
    that became part of the answer's text and spared a run.
    """

    def __init__(self, policy: DraftPolicy, never: Collection[int]) -> None:
        self._policy = policy
        self._never = frozenset(never)
        self._lookup = PromptLookup((), self._never)
        self._run: list[int] = []  # the drafted ids of the last run
        self._row = 0  # of its logits: the one after the last id that was taken
        self.drafted = 0
        self.accepted = 0

    def begin(self, ids: Iterable[int]) -> None:
        """Starts after `ids`, the prompt."""
        self._lookup = PromptLookup(ids, self._never)
        self._run, self._row = [], 0

    def take(self, token: int) -> int | None:
        """Notes the chosen id. Returns the row of the last run's logits that follows it, where it was drafted
        there; None where it must be run.
        """
        length = self._lookup.match_length
        was_expected = self._lookup.add(token)
        if was_expected is not None:
            self._policy.update(length, was_expected)
        if self._row < len(self._run) and self._run[self._row] == token:
            self._row += 1
            self.accepted += 1
            return self._row
        self._run, self._row = [], 0
        return None

    def draft(self, room: int) -> list[int]:
        """The ids to run after the one just taken, at most `room`; none where that does not pay."""
        self._run = []
        if self._lookup.expected is not None:
            size = self._policy.run_size(self._lookup.match_length, 1 + room)
            drafted = self._lookup.draft(size - 1)
            # Shortened to a size that is measured, where fewer ids followed the match.
            size = RUN_SIZES[bisect.bisect_right(RUN_SIZES, 1 + len(drafted)) - 1]
            self._run = drafted[: size - 1]
        self.drafted += len(self._run)
        return self._run
