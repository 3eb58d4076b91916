"""A step length that fulfils the strong Wolfe conditions (Nocedal and Wright, Numerical Optimization, 2nd
edition, algorithms 3.5 and 3.6, with cubic interpolation).

Knows a function of one number and its slope. Knows nothing of vectors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9
MAX_TRIALS = 20
_GROWTH = 2.0
_MARGIN = 0.1  # of the bracket, that a trial keeps from its ends


@dataclasses.dataclass(frozen=True)
class Trial:
    """A step that was tried: its length, the function's value there and its slope."""

    step: float
    value: float
    slope: float


def strong_wolfe(try_step: Callable[[float], Trial], start: Trial, first: float) -> Trial | None:
    """The accepted trial; None where none of MAX_TRIALS is accepted and none lies lower than the start.

    Args:
        start: value and slope, which is negative, at step 0.
        first: the step to try first.
    """
    assert start.slope < 0
    before, step = start, first
    best: Trial | None = None
    low = high = start
    bracketed = False
    for _ in range(MAX_TRIALS):
        now = try_step(step)
        if not math.isfinite(now.value):
            now = Trial(step, math.inf, math.inf)
        decreased = now.value <= start.value + SUFFICIENT_DECREASE * step * start.slope
        if decreased and abs(now.slope) <= -CURVATURE * start.slope:
            return now
        if decreased and (best is None or now.value < best.value):
            best = now
        if not bracketed:
            if not decreased or (before is not start and now.value >= before.value):
                low, high, bracketed = before, now, True
            elif now.slope >= 0:
                low, high, bracketed = now, before, True
            else:
                before, step = now, step * _GROWTH
                continue
        elif not decreased or now.value >= low.value:
            high = now
        else:
            high = low if now.slope * (high.step - low.step) >= 0 else high
            low = now
        step = _between(low, high)
    return best


def _between(low: Trial, high: Trial) -> float:
    """The minimum of the cubic through both trials, kept away from the bracket's ends; else its middle."""
    width = high.step - low.step
    middle = low.step + 0.5 * width
    if not math.isfinite(high.value):
        return middle
    skew = low.slope + high.slope - 3 * (high.value - low.value) / width
    under = skew * skew - low.slope * high.slope
    if under < 0:
        return middle
    root = math.copysign(math.sqrt(under), width)
    denominator = high.slope - low.slope + 2 * root
    if denominator == 0:
        return middle
    step = high.step - width * (high.slope + root - skew) / denominator
    nearest, farthest = low.step + _MARGIN * width, high.step - _MARGIN * width
    return min(max(step, min(nearest, farthest)), max(nearest, farthest))
