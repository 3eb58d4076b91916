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


Report = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """The report of a caller who does not ask for any."""
