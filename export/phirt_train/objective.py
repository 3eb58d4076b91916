"""What a training objective is: one module of `phirt_train.objectives`, found by its name.

Such a module has a constant `KIND`: the class of its data in a recipe, and what builds it. Knows nothing of
any one objective, of optimisers or of where weights go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.stage import StageConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Share:
    """One of `count` equal parts of a step: of a process, and of what a forward pass takes at once."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This part of the items; parts differ by one item at most."""
        begin, end = (part * len(items) // self.count for part in (self.index, self.index + 1))
        return items[begin:end]


def shares_of(stage: StageConfig, process: int = 0, processes: int = 1) -> Sequence[Share]:
    """The shares of a step that a process takes, one a forward pass.

    Raises:
        ConfigError: the step cannot be dealt out evenly.
    """
    if stage.batch % processes:
        raise ConfigError(
            f"the batch of stage {stage.name} is {stage.batch}; accepted with {processes} processes: "
            f"multiples of {processes}"
        )
    own = stage.batch // processes
    passes = -(-own // min(own, stage.micro_batch or own))
    return [Share(process * passes + number, processes * passes) for number in range(passes)]


class Loss(NamedTuple):
    """What a part of a step adds to its loss, which is the sum of all totals over the sum of all weights.

    Attributes:
        total: the sum of the loss over what is learnt, a scalar with gradients.
        weight: over how many things it is summed: tokens, letters, pictures.
        units: how many items it held, as `Objective.unit` counts them.
    """

    total: Tensor
    weight: float
    units: int


class Objective(Protocol):
    """What a stage minimises. A batch is a function of the context's seed, the step and the share alone."""

    @property
    def head(self) -> nn.Module:
        """Parameters of the stage alone; they are trained and then dropped."""

    @property
    def unit(self) -> str:
        """What `loss` counts: tokens, images, clips."""

    def prepare(self, step: int, share: Share) -> Any:
        """What this part of a step learns from, on the CPU; a worker may make it ahead of the step."""

    def loss(self, batch: Any) -> Loss:
        """The loss of what `prepare` made."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data, by name."""


@runtime_checkable
class DecoderPasses(Protocol):
    """An objective whose batches take a number of passes through the decoder that differs from one to the
    next.
    """

    def decoder_passes(self, batch: Any) -> int:
        """How many `loss` makes of what `prepare` made."""


@dataclasses.dataclass(frozen=True)
class ObjectiveKind:
    """One objective: the frozen dataclass of its `[stage.data]` (see `stage.StageData`), and its builder."""

    data: type[Any]
    build: Callable[[Model, StageConfig, TrainingContext], Objective]
