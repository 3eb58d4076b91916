"""One stage's loop: optimiser, schedule, averaging, progress, and state on disk that a later start continues
from.

Knows parameters, steps and time. Knows nothing of what a batch holds. A batch is a pure function of the seed
and the step (objectives draw nothing from global generators), so an interrupted stage ends with the weights
of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt_train.progress import Progress, Report
from phirt_train.recipe import Schedule, StageConfig


class Objective(Protocol):
    """What a stage minimises. `head` holds parameters of the stage alone; they are trained and then
    dropped.
    """

    @property
    def head(self) -> nn.Module: ...

    @property
    def unit(self) -> str: ...

    def loss(self, step: int) -> tuple[Tensor, int]:
        """Loss of the batch of this step, and how many units (tokens, pictures, clips) it held."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data, by name."""


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a finished stage reports: its length, its time over all starts, figures on held-out data, and the
    digest of the recipe up to it.
    """

    name: str
    steps: int
    seconds: float
    units: int
    unit: str
    loss: float
    figures: dict[str, float]
    digest: str


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The stage was asked to stop and its state is on disk."""


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Rate at `step` of `steps`: linear warm-up, then a cosine down to `final_ratio`·peak."""
    if step < schedule.warmup_steps:
        return schedule.peak * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    low = schedule.final_ratio
    return schedule.peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".partial")
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, staging, metadata
    )
    with staging.open("rb+") as file:
        os.fsync(file.fileno())
    staging.replace(path)


class HiddenMuon(torch.optim.Muon):
    """Muon for hidden matrices and for convolutions, a convolution taken as the matrix of its flattened
    filters.

    Its updates are scaled to AdamW's root mean square (Liu et al. 2025), so that one rate serves both.
    """

    MIN_INPUTS = 16

    def __init__(self, sources: list[nn.Parameter], schedule: Schedule) -> None:
        self.sources = sources
        self.matrices = [nn.Parameter(source.detach().flatten(1)) for source in sources]
        assert all(m.data_ptr() == s.data_ptr() for m, s in zip(self.matrices, sources, strict=True))
        super().__init__(
            self.matrices,
            lr=schedule.peak,
            weight_decay=schedule.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    @classmethod
    def suits(cls, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter maps a hidden vector to another: no table, no head, no depthwise filter."""
        if name.startswith("head.") or "embed_tokens." in name or "position_embedding" in name:
            return False
        if parameter.dim() < 2 or parameter.shape[0] == 1 or "bias_values" in name:
            return False
        return parameter[0].numel() >= cls.MIN_INPUTS

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for source, matrix in zip(self.sources, self.matrices, strict=True):
            matrix.grad = None if source.grad is None else source.grad.flatten(1)
        torch.optim.Muon.step(self, closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters and of their matrices."""
        super().zero_grad(set_to_none)
        for source in self.sources:
            source.grad = None


def _optimizers(parameters: dict[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""
    hidden = [p for n, p in parameters.items() if schedule.muon and HiddenMuon.suits(n, p)]
    taken = {id(p) for p in hidden}
    rest = [p for p in parameters.values() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(
            torch.optim.AdamW(groups, lr=schedule.peak, betas=(0.9, schedule.beta2), fused=True)
        )
    if hidden:
        optimizers.append(HiddenMuon(hidden, schedule))
    return optimizers


def _moments(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Each parameter of the model with the one that the optimiser keeps its moments under."""
    if isinstance(optimizer, HiddenMuon):
        return list(zip(optimizer.sources, optimizer.matrices, strict=True))
    return [(p, p) for group in optimizer.param_groups for p in group["params"]]


class StageRun:
    """The running state of one stage: parameters, moments, averaged weights, position."""

    CHECKPOINT_SECONDS = 120.0

    def __init__(
        self, model: nn.Module, objective: Objective, stage: StageConfig, folder: Path, seed: int, digest: str
    ) -> None:
        self.seed, self.digest = seed, digest
        self.model, self.objective, self.stage = model, objective, stage
        self.state_path = folder / "state.safetensors"
        self.parameters = _select(model, stage.trains)
        self.parameters |= {f"head.{n}": p for n, p in objective.head.named_parameters()}
        self.buffers = {n: b for n, b in model.named_buffers() if n.startswith(stage.trains)}
        self.optimizers = _optimizers(self.parameters, stage.schedule)
        # Running statistics of batch norm belong to the weights that they were measured with: averaged too.
        self.averaged: dict[str, Tensor] = {}
        if stage.ema:
            self.averaged |= self.parameters
            self.averaged |= {n: b for n, b in self.buffers.items() if b.is_floating_point()}
        self.averages = {n: tensor.detach().clone() for n, tensor in self.averaged.items()}
        self.step, self.units, self.seconds, self.loss = 0, 0, 0.0, float("nan")
        self._stop = False
        if self.state_path.is_file():
            self._restore()

    def _restore(self) -> None:
        with safe_open(self.state_path, "pt") as file:
            position = json.loads(file.metadata()["position"])
            if position["digest"] != self.digest:
                raise ConfigError(
                    f"{self.state_path} belongs to another recipe; train into another folder, or delete "
                    f"{self.state_path.parent.name} and the later stages"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        self.step, self.units = position["step"], position["units"]
        self.seconds, self.loss = position["seconds"], position["loss"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
            for name, buffer in self.buffers.items():
                buffer.copy_(tensors[f"buffer.{name}"])
            for name in self.averages:
                self.averages[name].copy_(tensors[f"average.{name}"])
        names = {parameter: name for name, parameter in self.parameters.items()}
        for optimizer in self.optimizers:
            for parameter, key in _moments(optimizer):
                prefix = f"moment.{names[parameter]}/"
                optimizer.state[key] = {
                    moment.removeprefix(prefix): tensor.to(parameter.device)
                    for moment, tensor in tensors.items()
                    if moment.startswith(prefix)
                }

    def save(self) -> None:
        """Write everything a later start needs."""
        tensors: dict[str, Tensor] = {}
        states = {
            parameter: optimizer.state.get(key, {})
            for optimizer in self.optimizers
            for parameter, key in _moments(optimizer)
        }
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter
            # A head whose question has not come up yet has no gradient and so no state.
            moments = states[parameter]
            tensors |= {f"moment.{name}/{key}": value for key, value in moments.items()}
        tensors |= {f"buffer.{name}": buffer for name, buffer in self.buffers.items()}
        tensors |= {f"average.{name}": average for name, average in self.averages.items()}
        position = {
            "digest": self.digest,
            "step": self.step,
            "units": self.units,
            "seconds": self.seconds,
            "loss": self.loss,
        }
        save_tensors(tensors, self.state_path, {"position": json.dumps(position)})

    def _one_step(self) -> None:
        schedule = self.stage.schedule
        rate = learning_rate(schedule, self.step, self.stage.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        torch.manual_seed(self.seed * 1_000_003 + self.step)  # dropout draws from the global generator
        loss, units = self.objective.loss(self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), schedule.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.stage.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.averaged[name], 1 - decay)
        value = loss.item()
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value
        self.units += units
        self.step += 1

    def _request_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop = True

    def run(self, report: Report) -> StageResult:
        """Run to the last step, writing state every two minutes.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; the state was written after the step in hand.
        """
        handlers = {kind: signal.signal(kind, self._request_stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._steps(report)
        finally:
            for kind, handler in handlers.items():
                signal.signal(kind, handler)
        with torch.no_grad():
            for name, average in self.averages.items():
                self.averaged[name].copy_(average)
        self.model.eval()
        figures = self.objective.validate()
        stage = self.stage
        return StageResult(
            stage.name,
            self.step,
            self.seconds,
            self.units,
            self.objective.unit,
            self.loss,
            figures,
            self.digest,
        )

    def _steps(self, report: Report) -> None:
        for module in self.model.modules():  # frozen parts neither drop out nor move their running statistics
            module.training = any(p.requires_grad for p in module.parameters())
        saved = shown = begun = time.monotonic()
        first_step, first_units, spent = self.step, self.units, self.seconds
        while self.step < self.stage.steps:
            self._one_step()
            now = time.monotonic()
            self.seconds = spent + now - begun
            if self._stop or now - saved > self.CHECKPOINT_SECONDS:
                self.save()
                saved = now
            if self._stop:
                raise Interrupted(
                    f"stopped at step {self.step} of stage {self.stage.name}; start again to continue"
                )
            if now - shown > 2.0 or self.step == self.stage.steps:
                shown = now
                per_step = (now - begun) / (self.step - first_step)
                rate = (self.units - first_units) / (now - begun)
                remaining = per_step * (self.stage.steps - self.step)
                report(
                    Progress(
                        self.stage.name,
                        self.step,
                        self.stage.steps,
                        self.objective.unit,
                        loss=self.loss,
                        rate=rate,
                        remaining=remaining,
                    )
                )


def _select(model: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters whose names begin with (or, written with a leading `*`, contain) one of the patterns.

    All others are frozen.

    Raises:
        ConfigError: a pattern fits no parameter.
    """

    def fits(name: str, pattern: str) -> bool:
        return pattern[1:] in name if pattern.startswith("*") else name.startswith(pattern)

    names = [name for name, _ in model.named_parameters()]
    idle = [pattern for pattern in patterns if not any(fits(name, pattern) for name in names)]
    if idle:
        raise ConfigError(f"no parameter fits {', '.join(idle)}; names are like {names[0]} and {names[-1]}")
    chosen = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fits(name, pattern) for pattern in patterns))
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen
