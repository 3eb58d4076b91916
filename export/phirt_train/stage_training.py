"""Trains one stage of a run: its model from what went before, its objective, its steps, and what is kept of
it in its folder.

Knows a stage and the run that it belongs to. Knows nothing of the order of stages, or of objectives' insides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from phirt.runtime.atomic_file import write_text
from phirt_export.chat_files import TOKENIZER_NAME
from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.loop import StageResult, StageRun
from phirt_train.metrics import EVENTS_NAME, Metrics
from phirt_train.objective import Objective
from phirt_train.objectives import find_objective
from phirt_train.outside import check_tokenizer, find_outside
from phirt_train.processes import Processes
from phirt_train.quantize_aware import set_weight_grid, snap_weights
from phirt_train.recipe import Recipe
from phirt_train.results import RESULT_NAME
from phirt_train.schedules import course_of, is_continued
from phirt_train.sharding import Sharding, whole
from phirt_train.stage import StageConfig
from phirt_train.stage_record import record_stage, tensor_digests, write_record
from phirt_train.state_file import save_tensors
from phirt_train.weights import (
    MOMENTS_NAME,
    WEIGHTS_NAME,
    copied_names,
    fresh_model,
    load_into,
    weights_before,
)

_SHARES_NAME = "shares.jsonl"  # of sources or parts, a line for each hundredth of the steps


@dataclasses.dataclass(frozen=True, eq=False)
class _Start:
    """What a stage begins with.

    Attributes:
        model: with its first weights.
        weights: those of the stages before, by name.
        copied: where the stage's copies of tensors come from, by their names.
        digests: of the model's tensors.
    """

    model: Model
    weights: Mapping[str, Tensor]
    copied: Mapping[str, str]
    digests: Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class StageTraining:
    """One stage in its run.

    Attributes:
        digest: of all that the stage is a function of.
    """

    recipe: Recipe
    stage: StageConfig
    run_dir: Path
    context: TrainingContext
    digest: str
    processes: Processes
    sharding: Sharding

    @property
    def _folder(self) -> Path:
        return self.run_dir / self.stage.name

    def run(self) -> StageResult:
        """Train to the last step and keep what was trained.

        Raises:
            ConfigError: weights or data do not serve.
            Interrupted: a signal arrived; the state is on disk.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        stage = self.stage
        self.context.note("loading weights", 0, stage.steps, "steps")
        start = self._start()
        objective = self._objective(start.model)
        if stage.quantize_aware:
            set_weight_grid(start.model, stage.quantize_aware)
        run = self._stage_run(start.model, objective)
        with contextlib.ExitStack() as open_files:
            if self.processes.is_first:
                metrics = Metrics(self._folder, self.run_dir / EVENTS_NAME / stage.name, run.step)
                run.record = open_files.enter_context(metrics).add
            result = run.run(self.context.report)
        result = self._with_data(result, objective)
        if stage.quantize_aware:
            snap_weights(start.model)
        self._keep(run, start, result)
        return result

    def _start(self) -> _Start:
        stage, device = self.stage, self.context.device
        if stage.checkpoint is not None:
            outside = find_outside(stage.checkpoint, self.recipe.folder)
            check_tokenizer(outside, stage, (self.run_dir / TOKENIZER_NAME).read_bytes())
        torch.manual_seed(self.context.seed)
        model = fresh_model(self.recipe, self.recipe.model_after(stage.name))
        before = weights_before(self.recipe, stage, self.run_dir)
        load_into(model, before)
        state = model.state_dict()
        copied = copied_names(state, stage.copies)
        load_into(model, {name: state[source] for name, source in copied.items()})
        model.to(device)
        return _Start(model, before, copied, tensor_digests(model))  # also where it goes on from a state

    def _objective(self, model: Model) -> Objective:
        stage = self.stage
        with self.processes.in_turn():  # what is prepared once is prepared by the first
            objective = find_objective(stage.objective).build(model, stage, self.context)
        objective.head.to(self.context.device)
        return objective

    def _stage_run(self, model: Model, objective: Objective) -> StageRun:
        stage = self.stage
        continued = stage.schedule.continues
        return StageRun(
            model,
            objective,
            stage,
            self._folder,
            self.context.seed,
            self.digest,
            course=course_of(self.recipe.stages, stage.name),
            moments=None if continued is None else self.run_dir / continued / MOMENTS_NAME,
            processes=self.processes,
            sharding=self.sharding,
        )

    def _with_data(self, result: StageResult, objective: Objective) -> StageResult:
        """The result with what was taken of the data, and what was left out."""
        counted = getattr(objective, "consumed", None)
        rejects = self.context.rejects
        if (realised := getattr(objective, "realised", None)) is not None:
            lines = [json.dumps(shares) + "\n" for shares in realised()]
            write_text(self._folder / _SHARES_NAME, "".join(lines))
        if notice := rejects.notice():
            self.context.note(notice, result.steps, result.steps, "steps")
        return dataclasses.replace(
            result,
            consumed={} if counted is None else counted(result.steps),
            left_out={name: file.rows for name, file in rejects.files.items()},
        )

    def _keep(self, run: StageRun, start: _Start, result: StageResult) -> None:
        """Write all that later stages and reports read of this one; its state is not needed any more."""
        model, state, buffers = start.model, start.model.state_dict(), set(run.buffers)
        trained = {name for name in run.parameters if not name.startswith("head.")}
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        changed, is_now = trained | buffers, tensor_digests(model)
        record = record_stage(
            self.stage, sizes, changed, start.digests, is_now, model.config, self.context.device
        )
        kept = changed | set(start.copied)  # among the buffers tables that no checkpoint has
        tensors = {name: whole(state[name]) for name in sorted(kept) if name in state}
        if is_continued(self.recipe.stages, self.stage.name):
            run.save_moments(self._folder / MOMENTS_NAME)
        if self.processes.is_first:
            save_tensors(dict(start.weights) | tensors, self._folder / WEIGHTS_NAME)
            write_record(record, self._folder)
            write_text(self._folder / RESULT_NAME, json.dumps(dataclasses.asdict(result), indent=1))
            run.state_path.unlink(missing_ok=True)
        self.processes.wait()
