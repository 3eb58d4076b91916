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
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import sync_file, sync_folder
from phirt_train.objective import Objective, Share
from phirt_train.optimizers import learning_rate, make_optimizers, moment_keys
from phirt_train.progress import Progress, Report
from phirt_train.stage import StageConfig

_REPORT_SECONDS = 1.0
# Ctrl-C, what service managers send, and a terminal that goes away (not known on Windows).
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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
    figures: Mapping[str, float]
    digest: str


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The stage was asked to stop by `signal`, and its state is on disk."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".partial")
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, staging, metadata
    )
    sync_file(staging)
    staging.replace(path)
    sync_folder(path.parent)


class StageRun:
    """The running state of one stage: parameters, moments, averaged weights, position."""

    CHECKPOINT_SECONDS = 120.0

    def __init__(
        self, model: nn.Module, objective: Objective, stage: StageConfig, folder: Path, seed: int, digest: str
    ) -> None:
        self.seed, self.digest = seed, digest
        self.model, self.objective, self.stage = model, objective, stage
        self.state_path = folder / "state.safetensors"
        self.parameters = _select(model, stage)
        self.parameters |= {f"head.{n}": p for n, p in objective.head.named_parameters()}
        self.buffers = {n: b for n, b in model.named_buffers() if n.startswith(stage.trains)}
        self.optimizers = make_optimizers(self.parameters, stage.schedule)
        # Running statistics of batch norm belong to the weights that they were measured with: averaged too.
        self.averaged: dict[str, Tensor] = {}
        if stage.ema:
            self.averaged |= self.parameters
            self.averaged |= {n: b for n, b in self.buffers.items() if b.is_floating_point()}
        self.averages = {n: tensor.detach().clone() for n, tensor in self.averaged.items()}
        self.step, self.units, self.seconds, self.loss = 0, 0, 0.0, float("nan")
        self._stop: int | None = None  # the signal that asked for it
        self._former_handlers: dict[int, Any] = {}
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
            for parameter, key in moment_keys(optimizer):
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
            for parameter, key in moment_keys(optimizer)
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
        loss = self.objective.loss(self.objective.prepare(self.step, Share()))
        value, units = loss.total.item() / max(1, loss.weight), loss.units
        self._check(loss.total, value)
        (loss.total / max(1, loss.weight)).backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), schedule.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.stage.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.averaged[name], 1 - decay)
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value
        self.units += units
        self.step += 1

    def _check(self, loss: Tensor, value: float) -> None:
        stage = self.stage
        if not loss.requires_grad:
            raise ConfigError(
                f"stage {stage.name} trains {', '.join(stage.trains)}, which its data do not reach (text "
                "alone takes no adapter, for one); train other parameters, or give other data"
            )
        if not math.isfinite(value):
            raise ConfigError(
                f"the loss of stage {stage.name} is no number at step {self.step}; lower schedule.peak "
                f"({stage.schedule.peak:g}), or look at the data"
            )

    def _request_stop(self, number: int, _frame: FrameType | None) -> None:
        if self._stop is not None:  # somebody does not want to wait for the step in hand
            signal.signal(number, self._former_handlers[number])
            signal.raise_signal(number)
        self._stop = number

    def run(self, report: Report) -> StageResult:
        """Run to the last step, writing state every two minutes.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGHUP arrived; the state was written after the step in hand. What
                a second one does is up to whoever handled it before.
        """
        # Only the main thread is told of signals; elsewhere whoever started the thread ends it.
        is_main = threading.current_thread() is threading.main_thread()
        for kind in _STOPPING if is_main else ():
            if signal.getsignal(kind) is not signal.SIG_IGN:  # as with nohup
                self._former_handlers[kind] = signal.signal(kind, self._request_stop)
        try:
            self._steps(report)
        finally:
            for kind, handler in self._former_handlers.items():
                signal.signal(kind, handler)
        with torch.no_grad():
            for name, average in self.averages.items():
                self.averaged[name].copy_(average)
        self.model.eval()
        report(Progress(self.stage.name, self.step, self.stage.steps, "steps", "measuring"))
        measured = self.objective.validate()
        figures = {name: value for name, value in measured.items() if math.isfinite(value)}
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
        saved = begun = time.monotonic()
        shown = begun - _REPORT_SECONDS
        first_step, first_units, spent = self.step, self.units, self.seconds
        while self.step < self.stage.steps:
            self._one_step()
            now = time.monotonic()
            self.seconds = spent + now - begun
            if self._stop is not None or now - saved > self.CHECKPOINT_SECONDS:
                self.save()
                saved = now
            if self._stop is not None:
                raise Interrupted(
                    f"stopped at step {self.step} of stage {self.stage.name}; start again to continue",
                    self._stop,
                )
            if now - shown >= _REPORT_SECONDS or self.step == self.stage.steps:
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


def trained_names(names: Iterable[str], stage: StageConfig) -> list[str]:
    """The names that begin with (or, written with a leading `*`, contain) one of the stage's patterns.

    Raises:
        ConfigError: a pattern fits no name.
    """

    def fits(name: str, pattern: str) -> bool:
        return pattern[1:] in name if pattern.startswith("*") else name.startswith(pattern)

    known = list(names)
    if idle := [pattern for pattern in stage.trains if not any(fits(name, pattern) for name in known)]:
        raise ConfigError(
            f"stage {stage.name}: no parameter fits {', '.join(idle)}; names are like {known[0]} and "
            f"{known[-1]}"
        )
    return [name for name in known if any(fits(name, pattern) for pattern in stage.trains)]


def _select(model: nn.Module, stage: StageConfig) -> dict[str, nn.Parameter]:
    """The parameters that the stage trains, by name; all others are frozen."""
    parameters = dict(model.named_parameters())
    chosen = trained_names(parameters, stage)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return {name: parameters[name] for name in chosen}
