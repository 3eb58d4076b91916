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
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt_export.reference import Model
from phirt_train.activation_checkpointing import checkpoint_layers
from phirt_train.batches import Batches, count_workers, lost_worker
from phirt_train.data.sampling import Consumed
from phirt_train.gradients import sum_gradients
from phirt_train.guards import DivergenceError, SpikeGuard, why_no_number
from phirt_train.objective import Objective, shares_of
from phirt_train.optimizers import make_optimizers, moments_of, set_moments, set_rate
from phirt_train.processes import ALONE, Processes
from phirt_train.progress import Progress, Record, Report, StepRecord, forget
from phirt_train.schedules import Course, lone_course
from phirt_train.selection import kept_buffers, part_rates, select
from phirt_train.sharding import ShardedObjective, Sharding, like, shard, whole
from phirt_train.stage import StageConfig
from phirt_train.state_file import damaged, read_state, read_tensors, save_tensors

_REPORT_SECONDS = 1.0
# Ctrl-C, what service managers send, and a terminal that goes away (not known on Windows).
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a finished stage reports: its length, its time over all starts, figures on held-out data, the
    digest of the recipe up to it, what it took of each source, and how many rows of each file it left out.
    """

    name: str
    steps: int
    seconds: float
    units: int
    unit: str
    loss: float
    figures: Mapping[str, float]
    digest: str
    consumed: Mapping[str, Consumed] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The stage was asked to stop by `signal`, and its state is on disk."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class StageRun:
    """The running state of one stage: parameters, moments, averaged weights, position.

    Args:
        folder: where its state lies.
        digest: of the recipe up to it.
        course: where it lies in a schedule of several stages; by default its schedule is its own.
        moments: what the stage that it continues has kept of its optimisers.
        record: called after every step.
        processes: those that train together.
        sharding: whether they deal out weights and moments, or hold all of them each.
    """

    CHECKPOINT_SECONDS = 120.0

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        stage: StageConfig,
        folder: Path,
        seed: int,
        digest: str,
        *,
        course: Course | None = None,
        moments: Path | None = None,
        record: Record = forget,
        processes: Processes = ALONE,
        sharding: Sharding = "none",
    ) -> None:
        self.seed, self.digest = seed, digest
        self.model, self.objective, self.stage = model, objective, stage
        self.course, self.record = course or lone_course(stage), record
        self.state_path = folder / "state.safetensors"
        if stage.checkpoint_activations and isinstance(model, Model):
            checkpoint_layers(model)
        self.processes, self.sharding = processes, sharding
        self._loss, self._validate = objective.loss, objective.validate
        trained = select(model, stage)
        if sharding == "fsdp":
            sharded = shard(model, objective, processes)
            self._loss, self._validate = sharded, sharded.validate
        self.parameters = {name: model.get_parameter(name) for name in trained}
        self.parameters |= {f"head.{n}": p for n, p in objective.head.named_parameters()}
        self.names = {parameter: name for name, parameter in self.parameters.items()}
        self.buffers = kept_buffers(model, trained, stage)
        rates = part_rates(self.parameters, stage)
        self.optimizers = make_optimizers(self.parameters, stage.schedule, rates)
        shares, workers = (
            shares_of(stage, processes.rank, processes.count),
            count_workers(stage, model, processes),
        )
        self._batches = Batches(objective, shares, stage.steps, workers)
        # Running statistics of batch norm belong to the weights that they were measured with: averaged too.
        self.averaged: dict[str, Tensor] = {}
        if stage.ema:
            self.averaged |= self.parameters
            self.averaged |= {n: b for n, b in self.buffers.items() if b.is_floating_point()}
        self.averages = {n: tensor.detach().clone() for n, tensor in self.averaged.items()}
        self.guard = SpikeGuard(stage.schedule.spike_sigma, stage.schedule.spike_steps)
        self.step, self.units, self.seconds, self.loss = 0, 0, 0.0, float("nan")
        self._stop: int | None = None  # the signal that asked for it
        self._former_handlers: dict[int, Any] = {}
        if self.state_path.is_file():
            self._restore()
        elif moments is not None:
            set_moments(self.optimizers, self.names, read_tensors(moments))

    def _restore(self) -> None:
        position, parts = read_state(self.state_path, self.digest)
        try:
            self._go_on_from(position, parts)
        except (KeyError, TypeError, RuntimeError) as error:  # the file is whole, but of something else
            raise damaged(self.state_path, f"it does not fit the stage ({error!r:.80})") from error

    def _go_on_from(self, position: Mapping[str, Any], parts: Mapping[str, dict[str, Tensor]]) -> None:
        self.step, self.units = position["step"], position["units"]
        self.seconds, self.loss = position["seconds"], position["loss"]
        self.guard.restore(position["guard"])
        held: dict[str, Mapping[str, Tensor]] = {
            "weight": self.parameters,
            "buffer": self.buffers,
            "average": self.averages,
        }
        with torch.no_grad():
            for part, tensors in held.items():
                for name, tensor in tensors.items():
                    tensor.copy_(like(parts[part][name], tensor))
        set_moments(self.optimizers, self.names, parts["moment"])

    def save(self, buffers: Mapping[str, Tensor] | None = None) -> None:
        """Write everything a later start needs; of buffers, where a step has moved them, what they were."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "weight": self.parameters,
            # A head whose question has not come up yet has no gradient and so no moments.
            "moment": moments_of(self.optimizers, self.names),
            "buffer": self.buffers if buffers is None else buffers,
            "average": self.averages,
        }
        position = {
            "digest": self.digest,
            "step": self.step,
            "units": self.units,
            "seconds": self.seconds,
            "loss": self.loss,
            "guard": self.guard.state(),
        }
        tensors = {f"{part}.{name}": whole(one) for part, some in parts.items() for name, one in some.items()}
        if self.processes.is_first:
            save_tensors(tensors, self.state_path, {"position": json.dumps(position)})

    def save_moments(self, path: Path) -> None:
        """Write the optimisers' moments of the model's parameters, for a stage that continues this one."""
        moments = moments_of(self.optimizers, self.names)
        if self.processes.is_first:
            save_tensors({key: one for key, one in moments.items() if not key.startswith("head.")}, path)

    def _one_step(self) -> None:
        stage, rate = self.stage, self.course.rate(self.step)
        set_rate(self.optimizers, rate)
        # Dropout draws from the global generator, in each process its own.
        torch.manual_seed((self.seed * 1_000_003 + self.step) * self.processes.count + self.processes.rank)
        before = {name: buffer.clone() for name, buffer in self.buffers.items()}
        parameters = list(self.parameters.values())
        figures = sum_gradients(self._batches.of(self.step), self._loss, parameters, self.processes)
        is_reached = figures.reached
        if isinstance(self._loss, ShardedObjective) and self._loss.is_uneven:
            is_reached = self._loss.drop_unreached()
        if not is_reached:
            raise ConfigError(
                f"stage {stage.name} trains {', '.join(stage.trains)}, which its data do not reach (text "
                "alone takes no adapter, for one); train other parameters, or give other data"
            )
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, stage.schedule.clip_norm)).item()
        self._guard(figures.loss, norm, before)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(stage.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.averaged[name], 1 - decay)
        self.loss = figures.loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * figures.loss
        self.units += figures.units
        self.step += 1
        self.record(StepRecord(self.step, figures.loss, norm, rate, self.units, self.seconds))

    def _guard(self, loss: float, norm: float, buffers: Mapping[str, Tensor]) -> None:
        """Stops the stage before an update that would spoil the weights; the last good state is kept, with
        `buffers`, as they were before the forward pass of this step has moved them.
        """
        reason = why_no_number(loss, norm)
        begins = self.guard.spikes == 0 and (reason is not None or self.guard.is_spike(loss, norm))
        if begins:
            self.save(buffers)  # from here on the weights may be spoilt: nothing is written over this
        if reason is None and self.guard.add(loss, norm):
            schedule = self.stage.schedule
            reason = (
                f"the loss ({loss:.4g}) or the gradient's length ({norm:.4g}) lay more than "
                f"{schedule.spike_sigma:g} deviations over its mean for {schedule.spike_steps} steps"
            )
        if reason is not None:
            raise DivergenceError(
                f"stage {self.stage.name} stopped at step {self.step}: {reason}; its last good state is in "
                f"{self.state_path}; lower schedule.peak ({self.course.schedule.peak:g}), or look at the data"
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
        begun_at = self.step
        try:
            self._steps(report)
            if self.step > begun_at and not self.guard.spikes:
                self.save()  # measuring may take long, and may be stopped: nothing is trained twice for it
                if (stop := self._stop_of_all()) is not None:
                    raise self._interrupted(stop)
        except RuntimeError as error:
            raise lost_worker(error) or error from error
        finally:
            self._batches.close()
            for kind, handler in self._former_handlers.items():
                signal.signal(kind, handler)
        with torch.no_grad():
            for name, average in self.averages.items():
                self.averaged[name].copy_(average)
        self.model.eval()
        report(Progress(self.stage.name, self.step, self.stage.steps, "steps", "measuring"))
        measured: dict[str, float] = {}
        if self.processes.is_first or self.sharding == "fsdp":
            measured = self._validate()
        measured = self.processes.share(measured)
        figures = {name: value for name, value in measured.items() if math.isfinite(value)}
        return StageResult(
            self.stage.name,
            self.step,
            self.seconds,
            self.units,
            self.objective.unit,
            self.loss,
            figures,
            self.digest,
        )

    def _interrupted(self, stop: int) -> Interrupted:
        place = f"step {self.step} of stage {self.stage.name}"
        return Interrupted(f"stopped at {place}; start again to continue", stop)

    def _stop_of_all(self) -> int | None:
        """The signal that asked any of the processes to stop."""
        asked = self.processes.sum([self._stop or 0, self._stop is not None])
        return int(asked[0] / asked[1]) if asked[1] else None

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
            stop = self._stop_of_all()
            # The first process' clock decides for all, which put the state together.
            is_due = self.processes.share(now - saved > self.CHECKPOINT_SECONDS)
            if (is_due or stop is not None) and not self.guard.spikes:
                self.save()
                saved = now
            if stop is not None:
                raise self._interrupted(stop)
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
