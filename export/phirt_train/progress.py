"""How far a run is: what is reported while data are prepared, while a tokenizer is learnt, and while a stage
trains.

Knows names and counts. Knows nothing of clocks or screens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Progress:
    """One report of a running recipe.

    Attributes:
        stage: the stage that runs, or what comes before all stages: "preparation", "tokenizer".
        step: how many steps are done: of training, or of what `activity` says.
        steps: how many there are; None where that is not known.
        unit: what is counted: items of training data in a stage, else what a step is.
        activity: what is done beside training, such as "reading chats.jsonl"; empty while steps of training
            run.
        loss, rate, remaining: running mean of the loss, units and seconds left; None before training.
    """

    stage: str
    step: int
    steps: int | None
    unit: str
    activity: str = ""
    loss: float | None = None
    rate: float | None = None
    remaining: float | None = None


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one step of a stage came to.

    Attributes:
        step: the number of steps done, this one included.
        loss: of this step alone.
        gradient_norm: length of the gradient, before it is clipped.
        rate: the schedule's learning rate.
        units: items learnt from so far.
        seconds: of training so far, over all starts.
    """

    step: int
    loss: float
    gradient_norm: float
    rate: float
    units: int
    seconds: float


Report = Callable[[Progress], None]
Record = Callable[[StepRecord], None]


def ignore(progress: Progress) -> None:
    """The report of a caller who does not ask for any."""


def forget(record: StepRecord) -> None:
    """The record of a caller who keeps none."""
