"""Mixtures: sources of training data with the share that each has, which may change over a stage.

Knows names, shares and positions in a stage. Knows nothing of what a source holds.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from phirt.errors import ConfigError
from phirt.fields import Length, Matching, Range

_Weight = Annotated[float, Range(0.0, 1e9)]
_Position = Annotated[float, Range(0.0, 1.0)]
# Points (position in the stage from 0 to 1, weight), with straight lines between them.
Points = Annotated[tuple[tuple[_Position, _Weight], ...], Length(1, 1024)]
_Tokens = Annotated[int, Range(0, 1 << 40)]
_Kind = Annotated[str, Matching("[A-Za-z0-9 _-]{0,64}", "a word such as web, synthetic or asr")]


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of which more than a constant weight is said.

    Attributes:
        share: its weight, or how that runs over the stage.
        start, end: in place of `share`, the weights that it begins and ends with.
        kind: what it holds, for reports and for weights by task: web, synthetic, code, asr.
        min_tokens, max_tokens: items that are shorter or longer are left out.
    """

    share: _Weight | Points | None = None
    start: _Weight | None = None
    end: _Weight | None = None
    kind: _Kind = ""
    min_tokens: _Tokens = 0
    max_tokens: _Tokens | None = None

    def __post_init__(self) -> None:
        ramp = (self.start is not None) + (self.end is not None)
        if (self.share is None) != (ramp == 2) or ramp == 1:
            raise ValueError("give either 'share', or both 'start' and 'end'")
        places = [position for position, _ in self.points]
        if places != sorted(places):
            raise ValueError("the positions of 'share' do not rise")
        if self.max_tokens is not None and self.max_tokens < max(1, self.min_tokens):
            raise ValueError(f"max_tokens is {self.max_tokens}, below min_tokens")

    @property
    def points(self) -> Points:
        """The weight over the stage."""
        if self.share is None:
            assert self.start is not None and self.end is not None
            return ((0.0, self.start), (1.0, self.end))
        return self.share if isinstance(self.share, tuple) else ((0.0, self.share),)

    @property
    def filters(self) -> bool:
        """Whether it leaves items out for their length."""
        return self.min_tokens > 0 or self.max_tokens is not None


# Relative weights of JSON lines, by path; they need not add up to one.
Sources = Annotated[Mapping[str, Annotated[float, Range(1e-9, 1e9)] | Points | Source], Length(0, 1024)]
# JSON lines to measure with, by what the figure is called.
HeldOut = Annotated[Mapping[str, str], Length(0, 256)]
# Weights of kinds of sources: within a kind its sources' own shares count.
Tasks = Annotated[Mapping[str, Annotated[float, Range(1e-9, 1e9)]], Length(0, 256)]


def source_of(value: float | Points | Source) -> Source:
    """A source's description, whatever form the recipe gives its share."""
    return value if isinstance(value, Source) else Source(value)


Weights = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclasses.dataclass(frozen=True)
class Shares:
    """The share of each source at every position of a stage.

    Attributes:
        names, kinds: of the sources.
        weights: gives weights [n, sources] at positions [n] from 0 to 1.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    weights: Weights

    @classmethod
    def of(
        cls,
        sources: Mapping[str, float | Points | Source],
        factor: Callable[[str], float] = lambda _: 1.0,
        tasks: Mapping[str, float] = types.MappingProxyType({}),
    ) -> Shares:
        """The shares of what a recipe gives.

        Args:
            factor: by how much the weight of each source is multiplied.
            tasks: weights by kind.

        Raises:
            ValueError: at some position nothing has a weight, or kinds and tasks do not fit.
        """
        read = {name: source_of(value) for name, value in sources.items()}
        kinds = tuple(source.kind for source in read.values())
        if tasks:
            _check_tasks(kinds, tasks)
        points = [[(at, weight * factor(name)) for at, weight in one.points] for name, one in read.items()]
        # Between two breakpoints weights are straight lines: where none vanishes at either, none does.
        places = sorted({0.0, 1.0, *(place for own in points for place, _ in own)})
        totals = _lines(points, np.array(places)).sum(axis=1)
        if not (totals > 0).all():
            raise ValueError(
                f"no source has a weight at position {places[int(totals.argmin())]:g} of the stage"
            )
        return cls(tuple(read), kinds, lambda positions: _by_task(_lines(points, positions), kinds, tasks))

    def at(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares [n, sources] at positions [n]; at each they add up to one."""
        weights = self.weights(positions)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _lines(
    points: Sequence[Sequence[tuple[float, float]]], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    columns = [
        np.interp(positions, [place for place, _ in own], [weight for _, weight in own]) for own in points
    ]
    return np.stack(columns, axis=1)


def _by_task(
    weights: NDArray[np.float64], kinds: Sequence[str], tasks: Mapping[str, float]
) -> NDArray[np.float64]:
    """The weights with those of each kind adding up to its task's."""
    for kind, weight in tasks.items():
        own = np.array([one == kind for one in kinds])
        totals = weights[:, own].sum(axis=1, keepdims=True)
        weights[:, own] *= weight / np.where(totals > 0, totals, 1.0)
    return weights


def _check_tasks(kinds: Iterable[str], tasks: Mapping[str, float]) -> None:
    given = set(kinds)
    if unlike := sorted(given ^ set(tasks)):
        raise ValueError(
            f"tasks and the kinds of the sources differ in {', '.join(name or '(none)' for name in unlike)}; "
            "give every source a kind, and every kind a weight"
        )


def join_shares(parts: Sequence[tuple[Shares, float]]) -> Shares:
    """The shares of several mixtures together, each weighing so much."""
    return Shares(
        tuple(name for shares, _ in parts for name in shares.names),
        tuple(kind for shares, _ in parts for kind in shares.kinds),
        lambda positions: np.concatenate([shares.at(positions) * one for shares, one in parts], axis=1),
    )


def check_sources(sources: Mapping[str, float | Points | Source], tasks: Mapping[str, float]) -> None:
    """Raises ValueError where there are no sources, or they have no weight somewhere in the stage."""
    if not sources:
        raise ValueError("sources is empty; give the share of one file at least")
    Shares.of(sources, tasks=tasks)


def refuse_filters(sources: Mapping[str, float | Points | Source]) -> None:
    """Raises ValueError where sources without tokens are filtered by their number."""
    if named := [name for name, value in sources.items() if source_of(value).filters]:
        raise ValueError(f"{named[0]} has min_tokens or max_tokens, and its items are not made of tokens")


def shares_of(
    path_of: Callable[[str], Path],
    sources: Mapping[str, float | Points | Source],
    optional: Iterable[str] = (),
    tasks: Mapping[str, float] = types.MappingProxyType({}),
    factor: Callable[[str], float] = lambda _: 1.0,
) -> Shares:
    """The shares of the sources that there are; see `present`.

    Raises:
        ConfigError: none is there, or those that are there have no weight at some position.
    """
    there = {name: sources[name] for name in present(path_of, sources, optional)}
    kinds = {source_of(value).kind for value in there.values()}
    known = {kind: weight for kind, weight in tasks.items() if kind in kinds}
    try:
        return Shares.of(there, factor, known)
    except ValueError as error:
        raise ConfigError(f"of the sources that are there: {error}; change their shares") from error


def present(path_of: Callable[[str], Path], names: Iterable[str], optional: Iterable[str]) -> list[str]:
    """The sources that there are; only those in `optional` may be missing.

    Raises:
        ConfigError: none of them is there.
    """
    named, left_out = list(names), set(optional)
    there = [name for name in named if name not in left_out or path_of(name).is_file()]
    if not there:
        folder = path_of(named[0]).parent
        raise ConfigError(f"{folder} holds none of {', '.join(named)}; the stage needs one of them at least")
    return there


def check_optional(optional: Iterable[str], sources: Iterable[str]) -> None:
    """Raises ConfigError where a source that may be missing is none of the stage's sources."""
    named = list(sources)
    if unknown := [name for name in optional if name not in named]:
        raise ConfigError(f"optional names {', '.join(unknown)}; accepted: {', '.join(named) or 'nothing'}")
