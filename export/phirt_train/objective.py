"""What a training objective is: one module of `phirt_train.objectives`, found by its name.

Such a module has a constant `KIND`: the class of its data in a recipe, and what builds it. Knows nothing of
any one objective, of optimisers or of where weights go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.stage import StageConfig


class Objective(Protocol):
    """What a stage minimises. A batch is a function of the context's seed and the step alone."""

    @property
    def head(self) -> nn.Module:
        """Parameters of the stage alone; they are trained and then dropped."""

    @property
    def unit(self) -> str:
        """What `loss` counts: tokens, images, clips."""

    def loss(self, step: int) -> tuple[Tensor, int]:
        """Loss of the batch of this step, and how many units it held."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data, by name."""


@dataclasses.dataclass(frozen=True)
class ObjectiveKind:
    """One objective: the frozen dataclass of its `[stage.data]` (see `stage.StageData`), and its builder."""

    data: type[Any]
    build: Callable[[Model, StageConfig, TrainingContext], Objective]
