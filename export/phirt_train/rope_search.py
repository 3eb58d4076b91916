"""LongRoPE's search (arXiv 2402.13753, section 3.2): one factor for each rotated pair, by evolution.

An individual is a row of factors on a grid of 0.01 that never fall from pair to pair and lie between 1 and
one more than the extension, and the number of first positions that keep their plain frequencies. The first
one is given (by default YaRN's); the others of the first population are its mutations. In every round the
better half goes on and makes the other half anew: half of that by mutation, half by crossover.

Knows individuals and fitness, which is any number that should be small. Knows nothing of models or text: see
`rope_fitness` for what to search by.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from phirt.errors import ConfigError
from phirt.fields import Fields, Range, read_dataclass, write_dataclass
from phirt_export.published.rope import yarn_factors
from phirt_export.reference.config import RopeConfig
from phirt_train.measured import Measured
from phirt_train.progress import Progress, Report, ignore

STAGE = "rope search"
_GRID = 100  # steps of a factor from one whole number to the next
_CROSSOVERS = 20  # tries to cross two rows so that factors do not fall

Fitness = Callable[[RopeConfig, int], float]
"""How bad a rotary embedding is, and with how many first positions left plain."""


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How long the search is. Half of the population (rounded down) are parents.

    Attributes:
        population: individuals of a generation.
        rounds: generations after the first.
        probability: of each factor to be changed in a mutation, or taken from the other parent.
        seed: what all randomness comes from.
    """

    population: Annotated[int, Range(4, 1 << 16)] = 64
    rounds: Annotated[int, Range(1, 1 << 16)] = 40
    probability: Annotated[float, Range(0.001, 1.0)] = 0.3
    seed: Annotated[int, Range(0, (1 << 31) - 1)] = 0

    @property
    def evaluations(self) -> int:
        """Individuals that are looked at; those that occur again cost nothing."""
        return self.population + self.rounds * (self.population - self.population // 2)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        rope: the rotary embedding with the best factors.
        first_unscaled: how many first positions go with it unscaled; no bundle can say so, which is why 0 is
            the only one searched unless others are given.
        fitness, first_fitness: of the best individual and of the first one.
        history: the best fitness of the first population and after each round.
    """

    rope: RopeConfig
    first_unscaled: int
    fitness: float
    first_fitness: float
    history: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class _Individual:
    """Factors in hundredths, and the first positions that keep plain frequencies."""

    steps: tuple[int, ...]
    first_unscaled: int

    @property
    def factors(self) -> tuple[float, ...]:
        return tuple(step / _GRID for step in self.steps)


def extended(rope: RopeConfig, context: int, long_factor: Sequence[float]) -> RopeConfig:
    """The rotary embedding with these factors past its original context, up to `context`; the magnitude is
    LongRoPE's own.
    """
    return dataclasses.replace(rope, context=context, long_factor=tuple(long_factor), magnitude=None)


def yarn_rope(rope: RopeConfig, context: int) -> RopeConfig:
    """The rotary embedding extended to `context` by YaRN's factors.

    Raises:
        ConfigError: `context` is no extension.
    """
    factors = yarn_factors(rope.theta, rope.rotary_dim, rope.original_context, _extension(rope, context))
    return extended(rope, context, factors)


def rescaled_factors(factors: Sequence[float], before: float, after: float) -> tuple[float, ...]:
    """Factors of one extension (times `before`) as a start for another: 1 stays 1, `before` becomes `after`.

    Raises:
        ConfigError: an extension is not greater than 1.
    """
    if min(before, after) <= 1:
        raise ConfigError(f"extensions are {before:g} and {after:g} times; accepted: more than 1")
    return tuple(1 + (factor - 1) * (after - 1) / (before - 1) for factor in factors)


def search_long_factors(
    rope: RopeConfig,
    context: int,
    fitness: Fitness,
    settings: SearchSettings | None = None,
    *,
    first: Sequence[float] | None = None,
    first_unscaled: Sequence[int] = (0,),
    path: Path | None = None,
    identity: str = "",
    report: Report = ignore,
) -> SearchResult:
    """The factors with which `context` positions go best.

    Args:
        rope: the embedding as it was trained; `original_context` is the length that it knows.
        context: the length that it is extended to.
        fitness: of candidates, such as `rope_fitness.perplexity` of documents so long.
        settings: how long to search; LongRoPE's own by default.
        first: the first individual, rounded to the grid; YaRN's factors by default.
        first_unscaled: the numbers of first positions to choose from.
        path: the file of figures from which a search that was stopped continues.
        identity: names model and documents in that file.
        report: told of each individual.

    Raises:
        ConfigError: `context` is no extension, the first factors do not fit, or the file is another search's.
    """
    start = yarn_rope(rope, context).long_factor if first is None else first
    search = _Search(
        settings or SearchSettings(),
        limit=_extension(rope, context),
        choices=first_unscaled,
        place=lambda factors: extended(rope, context, factors),
        fitness=fitness,
        measured=Measured(path, f"long factors {rope} {context} {identity}"),
        report=report,
    )
    return search.run(start)


def search_short_factors(
    rope: RopeConfig,
    fitness: Fitness,
    settings: SearchSettings | None = None,
    *,
    path: Path | None = None,
    identity: str = "",
    report: Report = ignore,
) -> SearchResult:
    """The factors for texts that fit `original_context`, of a model that was trained on to the longer one:
    LongRoPE's second search (section 3.3). It starts at the short factors as they are; the others are as in
    `search_long_factors`.
    """
    search = _Search(
        settings or SearchSettings(),
        limit=_extension(rope, rope.context),
        choices=(0,),
        place=lambda factors: dataclasses.replace(rope, short_factor=factors),
        fitness=fitness,
        measured=Measured(path, f"short factors {rope} {identity}"),
        report=report,
    )
    return search.run(rope.short_factor)


def _extension(rope: RopeConfig, context: int) -> float:
    if context <= rope.original_context:
        raise ConfigError(
            f"{context} positions are no extension of the {rope.original_context} that the model was trained "
            "on; give more"
        )
    return context / rope.original_context


class _Search:
    """One search: a function of its settings, the first individual and the fitness."""

    def __init__(
        self,
        settings: SearchSettings,
        *,
        limit: float,
        choices: Sequence[int],
        place: Callable[[tuple[float, ...]], RopeConfig],
        fitness: Fitness,
        measured: Measured,
        report: Report,
    ) -> None:
        fields = Fields(write_dataclass(settings), "the search", ConfigError, "correct its settings")
        self._settings: SearchSettings = read_dataclass(SearchSettings, fields)
        if not choices or min(choices) < 0:
            raise ConfigError(f"first_unscaled is {list(choices)}; accepted: numbers of positions from 0 on")
        self._limit, self._choices = int((1 + limit) * _GRID), tuple(choices)
        self._place, self._fitness, self._measured, self._report = place, fitness, measured, report
        self._random = random.Random(settings.seed)
        self._looked_at, self._best = 0, float("inf")

    def run(self, start: Sequence[float]) -> SearchResult:
        """The best individual after all rounds."""
        settings = self._settings
        first = self._individual(start)
        population = [first, *(self._mutated(first) for _ in range(settings.population - 1))]
        ranked = self._ranked([(self._measure(one), one) for one in population])
        first_fitness = self._measure(first, again=True)
        history = [ranked[0][0]]
        for _ in range(settings.rounds):
            parents = ranked[: settings.population // 2]
            children = self._children([one for _, one in parents])
            ranked = self._ranked([*parents, *((self._measure(one), one) for one in children)])
            history.append(ranked[0][0])
        fitness, best = ranked[0]
        if fitness == float("inf"):
            raise ConfigError("no individual has a fitness that is a number; the model is damaged")
        return SearchResult(
            self._place(best.factors), best.first_unscaled, fitness, first_fitness, tuple(history)
        )

    def _individual(self, factors: Sequence[float]) -> _Individual:
        """The factors on the grid."""
        steps = tuple(min(self._limit, max(_GRID, round(factor * _GRID))) for factor in factors)
        if list(steps) != sorted(steps):
            raise ConfigError("the first factors fall from one pair to the next; give a row that does not")
        return _Individual(steps, self._choices[0])

    def _measure(self, one: _Individual, *, again: bool = False) -> float:
        value = self._measured.value(
            [one.steps, one.first_unscaled],
            lambda: self._fitness(self._place(one.factors), one.first_unscaled),
        )
        if not again:
            self._looked_at += 1
            self._best = min(self._best, value)
            total = self._settings.evaluations
            self._report(Progress(STAGE, self._looked_at, total, "individuals", "searching", loss=self._best))
        return value

    @staticmethod
    def _ranked(found: list[tuple[float, _Individual]]) -> list[tuple[float, _Individual]]:
        """Better ones first; of equals the earlier."""
        return sorted(found, key=lambda pair: pair[0])

    def _children(self, parents: Sequence[_Individual]) -> list[_Individual]:
        """As many as there are places left: the first half mutations, the others crossovers."""
        places = self._settings.population - len(parents)
        mutations = (places + 1) // 2
        children = [self._mutated(self._random.choice(parents)) for _ in range(mutations)]
        for _ in range(places - mutations):
            children.append(self._crossed(*self._random.sample(parents, 2)))
        return children

    def _mutated(self, parent: _Individual) -> _Individual:
        """Some factors moved to anywhere between their neighbours."""
        steps = list(parent.steps)
        for place in range(len(steps)):
            if self._random.random() < self._settings.probability:
                low = steps[place - 1] if place else _GRID
                high = steps[place + 1] if place + 1 < len(steps) else self._limit
                steps[place] = self._random.randint(low, high)
        kept = self._random.random() >= self._settings.probability
        plain = parent.first_unscaled if kept else self._random.choice(self._choices)
        return _Individual(tuple(steps), plain)

    def _crossed(self, one: _Individual, other: _Individual) -> _Individual:
        """One with some of the other's factors; a mutation of it where no try keeps factors from falling."""
        for _ in range(_CROSSOVERS):
            steps = tuple(
                theirs if self._random.random() < self._settings.probability else own
                for own, theirs in zip(one.steps, other.steps, strict=True)
            )
            if list(steps) == sorted(steps):
                return _Individual(steps, self._random.choice((one, other)).first_unscaled)
        return self._mutated(one)
