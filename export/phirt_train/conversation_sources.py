"""Files of conversations and the shares in which they are drawn: what objectives on conversations have in
common, in a recipe and while they train.

Knows sources, shares, routes and lengths. Knows nothing of losses, or of how a row is made.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np

from phirt.fields import Length, Range
from phirt_export.reference import ROUTES, ModelConfig
from phirt_train.context import TrainingContext
from phirt_train.conversation_rows import ALIKE, Conversations, Group
from phirt_train.data.mixture import (
    HeldOut,
    Source,
    Sources,
    Tasks,
    check_optional,
    check_sources,
    shares_of,
    source_of,
)
from phirt_train.data.sampling import Consumed, FromSampler, Pick, Sampler
from phirt_train.stage import StageConfig

_WHOLE = Source(1.0)


@dataclasses.dataclass(frozen=True)
class ConversationData:
    """Where conversations come from.

    Attributes:
        sources: share of each file.
        tasks: weights of the kinds of sources; within a kind its sources' own shares count.
        optional: sources that are left out where they are missing.
        max_crops: most crops of a picture beside its global view; None for as many as the model takes.
        held_out: files to measure on, by what the figure is called.
    """

    sources: Sources
    tasks: Tasks = dataclasses.field(default_factory=dict)
    optional: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    max_crops: Annotated[int, Range(1, 256)] | None = None
    held_out: HeldOut = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sources(self.sources, self.tasks)
        check_optional(self.optional, self.sources)

    def check(self, model: ModelConfig) -> None:
        """Every model has a decoder that can answer."""

    def files(self) -> Iterable[str]:
        """All files that are read."""
        return (*(name for name in self.sources if name not in self.optional), *self.held_out.values())


class ConversationSources(FromSampler[Sampler], abc.ABC):
    """The files of a stage, loaded, and what each step draws of them.

    Attributes:
        sources: those that are drawn from, in the order of their shares.
        held_out: those that are measured on, by what the figure is called.
    """

    def __init__(self, data: ConversationData, stage: StageConfig, context: TrainingContext) -> None:
        shares = shares_of(context.path, data.sources, data.optional, data.tasks)
        self.sources = [self._load(name, source_of(data.sources[name])) for name in shares.names]
        self.held_out = {label: self._load(name, _WHOLE) for label, name in data.held_out.items()}
        sizes = {source.name: len(source) for source in self.sources}
        self._sampler = Sampler(sizes, shares, stage.batch, stage.steps, context.seed, self._key)

    @abc.abstractmethod
    def _load(self, name: str, limits: Source) -> Conversations:
        """What can be learnt of a file."""

    def _key(self, pick: Pick) -> tuple[int, ...]:
        """Items of one step have one route, as far as that can be, and similar lengths."""
        source = self.sources[pick.source]
        return list(ROUTES).index(source.routes[pick.item]), int(source.lengths[pick.item]) // ALIKE

    @property
    def item_tokens(self) -> float:
        """Tokens of an item, on average over the shares that the stage begins with."""
        means = np.array([source.lengths.mean() for source in self.sources])
        return float(self._sampler.draws.shares.at(np.zeros(1))[0] @ means)

    def decoder_passes(self, batch: Sequence[Group]) -> int:
        """One for each route that there is."""
        return len(batch)

    def consumed(self, step: int) -> dict[str, Consumed]:
        """What the steps before this one have taken of each source."""
        return self._sampler.consumed(step, [source.lengths for source in self.sources])
