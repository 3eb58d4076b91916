"""A figure that was taken several times: its mean and how far the takes lie apart.

Knows numbers. Does not know what they measure.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spread:
    """All takes of one figure, in the order in which they were taken; at least one."""

    takes: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return statistics.fmean(self.takes)

    @property
    def deviation(self) -> float:
        """The sample's standard deviation; 0 for a single take."""
        return statistics.stdev(self.takes) if len(self.takes) > 1 else 0.0

    def map(self, change: Callable[[float], float]) -> Spread:
        """The spread of what `change` makes of each take."""
        return Spread(tuple(map(change, self.takes)))

    def as_object(self) -> dict[str, Any]:
        """For JSON: mean, deviation, smallest, largest, and the takes themselves."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "min": min(self.takes),
            "max": max(self.takes),
            "takes": list(self.takes),
        }

    def text(self, form: Callable[[float], str]) -> str:
        """For people: the mean, and the deviation where there is one."""
        return form(self.mean) if len(self.takes) == 1 else f"{form(self.mean)} ± {form(self.deviation)}"
