"""What stops a stage before it spoils its weights: numbers that are none, and spikes that stay.

Knows the loss and the gradient's length of each step. Knows nothing of weights or of where state lies.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping

from phirt.errors import ConfigError

_WINDOW = 100  # steps that mean and deviation are taken from
_LEAST = 20  # steps before anything counts as a spike
_SMALLEST_DEVIATION = 0.05  # of the mean: a loss that hardly moves is not held to its last digits


class DivergenceError(ConfigError):
    """A stage was stopped because its loss or gradient went astray; its last good state is on disk."""


class SpikeGuard:
    """Counts the steps in a row whose loss or gradient lies far over the mean of the steps before.

    Args:
        sigma: how many deviations over the mean; 0 for never.
        patience: so many spikes in a row are too many.
    """

    def __init__(self, sigma: float, patience: int) -> None:
        self._sigma, self._patience = sigma, patience
        self._seen: dict[str, deque[float]] = {
            "loss": deque(maxlen=_WINDOW),
            "gradient": deque(maxlen=_WINDOW),
        }
        self.spikes = 0

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether a step lies far over those before it."""
        return any(
            self._is_far(self._seen[name], value) for name, value in (("loss", loss), ("gradient", norm))
        )

    def _is_far(self, seen: deque[float], value: float) -> bool:
        if not self._sigma or len(seen) < _LEAST:
            return False
        mean = statistics.fmean(seen)
        deviation = max(statistics.pstdev(seen, mean), _SMALLEST_DEVIATION * abs(mean))
        return value > mean + self._sigma * deviation

    def add(self, loss: float, norm: float) -> bool:
        """Count a step. Returns whether there were too many spikes in a row; they do not move the mean."""
        if self.is_spike(loss, norm):
            self.spikes += 1
            return self.spikes >= self._patience
        self.spikes = 0
        self._seen["loss"].append(loss)
        self._seen["gradient"].append(norm)
        return False

    def state(self) -> dict[str, list[float]]:
        """What `restore` takes."""
        return {name: list(values) for name, values in self._seen.items()}

    def restore(self, state: Mapping[str, Iterable[float]]) -> None:
        """Go on from a state that was kept while there was no spike."""
        for name, values in state.items():
            self._seen[name] = deque(values, _WINDOW)


def why_no_number(loss: float, norm: float) -> str | None:
    """What of a step is no number, in words; None where all is well."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return None if math.isfinite(norm) else f"the gradient's length is {norm}"
