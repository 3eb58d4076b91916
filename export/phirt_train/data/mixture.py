"""Mixtures: sources of training data with the share that each has.

Knows names and shares. Knows nothing of what a source holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import numpy as np

from phirt.errors import ConfigError
from phirt.fields import Length, Range

T = TypeVar("T")

# Relative weights of JSON lines, by path; they need not add up to one.
Sources = Annotated[Mapping[str, Annotated[float, Range(1e-9, 1e9)]], Length(0, 1024)]
# JSON lines to measure with, by what the figure is called.
HeldOut = Annotated[Mapping[str, str], Length(0, 256)]


class Mixture(Generic[T]):
    """Sources to draw from, each in its share."""

    def __init__(self, sources: Mapping[str, T], shares: Mapping[str, float]) -> None:
        assert sources, "an empty mixture has nothing to draw"
        self.names = list(sources)
        self.sources: Sequence[T] = list(sources.values())
        weights = np.array([shares[name] for name in self.names], float)
        self.shares = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> T:
        """One source."""
        return self.sources[int(rng.choice(len(self.sources), p=self.shares))]

    def counts(self, total: int, rng: np.random.Generator) -> list[int]:
        """How many of `total` items come from each source."""
        return [int(count) for count in rng.multinomial(total, self.shares)]


def present(folder: Path, names: Iterable[str], optional: Iterable[str]) -> list[str]:
    """The sources that there are; only those in `optional` may be missing.

    Raises:
        ConfigError: none of them is there.
    """
    named, left_out = list(names), set(optional)
    there = [name for name in named if name not in left_out or (folder / name).is_file()]
    if not there:
        raise ConfigError(f"{folder} holds none of {', '.join(named)}; the stage needs one of them at least")
    return there


def check_optional(optional: Iterable[str], sources: Iterable[str]) -> None:
    """Raises ConfigError where a source that may be missing is none of the stage's sources."""
    named = list(sources)
    if unknown := [name for name in optional if name not in named]:
        raise ConfigError(f"optional names {', '.join(unknown)}; accepted: {', '.join(named) or 'nothing'}")
