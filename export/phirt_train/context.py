"""What every objective is given beside the model and its stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class TrainingContext:
    """Seed and places of a run.

    Attributes:
        seed: seed of the stage; batches are functions of it and the step.
        data: the data package's folder (its README lists the files).
        cache: folder for what is prepared once (tokenised text, synthesised speech).
        tokenizer: path of the trained tokenizer.json.
        device: where the model is; batches are made on the CPU and moved there.
    """

    seed: int
    data: Path
    cache: Path
    tokenizer: Path
    device: torch.device
