"""A stage in miniature for tests of the loop: a network of two layers that learns a fixed map of made-up
rows.

Rows are functions of the seed and their number alone, so that a step can be cut into any parts, and a chain
of stages can see the rows of one long stage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phirt_export.reference import (
    DecoderConfig,
    Model,
    ModelConfig,
    RopeConfig,
    TokenConfig,
    initialize,
)
from phirt_train.loop import StageRun
from phirt_train.objective import Loss, Share
from phirt_train.stage import Schedule, StageConfig


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.2, generator=generator)

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(rows)))
        return result


class ToyObjective:
    """The squared error, of the rows of this and all later steps from `begin` on."""

    unit = "rows"

    def __init__(self, model: ToyModel, stage: StageConfig, begin: int = 0) -> None:
        self.model, self.stage, self.begin = model, stage, begin
        self.head = nn.Module()
        self.change: Callable[[int, Tensor], Tensor] = lambda step, total: total
        self.step = 0

    def prepare(self, step: int, share: Share) -> tuple[Tensor, int]:
        numbers = [(self.begin + step) * self.stage.batch + n for n in range(self.stage.batch)]
        generators = [torch.Generator().manual_seed(number) for number in share.of(numbers)]
        return torch.stack([torch.randn(16, generator=one) for one in generators]), step

    def loss(self, batch: tuple[Tensor, int]) -> Loss:
        rows, step = batch
        wanted = torch.stack([rows[:, n : n + 4].sin().sum(1) for n in range(4)], 1)
        total = (self.model(rows) - wanted).square().sum()
        return Loss(self.change(step, total), rows.shape[0], len(rows))

    def validate(self) -> dict[str, float]:
        return {"length": sum(float(p.detach().norm()) for p in self.model.parameters())}


def toy_config(**values: Any) -> StageConfig:
    schedule = values.pop("schedule", {"peak": 0.01, "warmup_steps": 3})
    defaults = {"name": "toy", "objective": "toy", "trains": ("first.", "second."), "steps": 12, "batch": 8}
    return StageConfig(**{**defaults, **values}, schedule=Schedule(**schedule), data=None)


def toy_run(
    folder: Path, stage: StageConfig, model: ToyModel | None = None, begin: int = 0, **values: Any
) -> StageRun:
    model = model or ToyModel()
    return StageRun(model, ToyObjective(model, stage, begin), stage, folder, 1, "digest", **values)


def toy_decoder(num_layers: int = 2) -> Model:
    """A decoder of the reference model with fresh weights."""
    rope = RopeConfig(1e4, 16, 64, 64, (1.0,) * 8, (1.0,) * 8)
    decoder = DecoderConfig(num_layers, 32, 2, 1, 16, 48, 40, 1e-5, rope)
    model = Model(ModelConfig(decoder, TokenConfig(0, 0, (1,), None, None), None, None, {}))
    initialize(model, 5)
    return model
