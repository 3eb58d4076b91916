"""What every objective is given beside the model and its stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from phirt.bundle.manifest import Limits
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.data.rejects import Rejects
from phirt_train.progress import Progress, Report


@dataclasses.dataclass(frozen=True)
class TrainingContext:
    """Seed, places and text of a stage.

    Attributes:
        stage: the stage's name.
        seed: seed of the stage; batches are functions of it and the step.
        data: the folder under which the recipe's files lie.
        cache: folder for what is prepared once (token ids).
        encoder: makes token ids of documents and conversations, as the runtime does.
        device: where the model is; batches are made on the CPU and moved there.
        limits: what one image or recording may be.
        is_fresh: whether no earlier stage has trained any weight that this one starts from.
        report: takes reports of progress.
        made: the folder of what the run's steps have made, see `phirt_train.step`.
        rejects: what is left out of the data, and why.
    """

    stage: str
    seed: int
    data: Path
    cache: Path
    encoder: ConversationEncoder
    device: torch.device
    limits: Limits
    is_fresh: bool
    report: Report
    made: Path | None = None
    rejects: Rejects = dataclasses.field(default_factory=Rejects)

    def path(self, name: str) -> Path:
        """Where a file that the recipe names lies."""
        if self.made is not None and name.startswith(f"{self.made.name}/"):
            return self.made.parent / name
        return self.data / name

    def note(self, activity: str, step: int = 0, steps: int | None = None, unit: str = "records") -> None:
        """Report what is done before training begins."""
        self.report(Progress(self.stage, step, steps, unit, activity))
