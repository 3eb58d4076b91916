"""Runs a recipe: its own code where it has any, the tokenizer, then each stage and step that is not done yet,
and a table of what they reached.

Knows the order of stages and the run folder. Knows nothing of objectives' and steps' insides.

A run folder holds `prepared/` (what the recipe's own code wrote), `made/` (what steps made),
`tokenizer.json`, `files.json` (digests of data), `cache/`, and for each stage `state.safetensors` while it
runs, then `model.safetensors` (every tensor trained so far), `moments.safetensors` where a later stage
continues its schedule, and `result.json` with `shares.jsonl`, `metrics.jsonl` of its steps and `record.json`
of what it changed; at the end `checkpoint/`, which `phirt export` takes. `report.md`, `report.json`,
`loss.png`, `schedule.png` and `tensorboard/` say how it went.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from pathlib import Path

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import atomic_write, write_text
from phirt_export.bundle import model_limits
from phirt_export.chat_files import TOKENIZER_NAME
from phirt_train.context import TrainingContext
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.data_digests import DataDigests
from phirt_train.file_digests import FileDigests
from phirt_train.loop import Interrupted, StageResult
from phirt_train.part_digests import own_tokenizer, part_digests, tokenizer_sources
from phirt_train.preparation import prepare_data
from phirt_train.processes import ALONE, Processes, check_started, join_processes, leave_processes
from phirt_train.progress import Report, ignore
from phirt_train.recipe import Recipe, load_recipe
from phirt_train.report import write_report
from phirt_train.results import RESULT_NAME, finished, result_table
from phirt_train.run_marks import alone, is_marked, mark
from phirt_train.sharding import Sharding, check_sharded
from phirt_train.stage import StageConfig
from phirt_train.stage_fields import missed
from phirt_train.stage_training import StageTraining
from phirt_train.step import MADE, StepConfig, StepContext, Weights, step_of
from phirt_train.step_run import (
    check_made,
    files_needed,
    run_step,
    step_seed,
    with_found,
)
from phirt_train.tokenizer import train_tokenizer
from phirt_train.weights import (
    CHECKPOINT_NAME,
    check_recipe,
    checkpoint_after,
    model_after,
    write_checkpoint,
)


def run_recipe(
    path: Path,
    run_dir: Path,
    data: Path | None = None,
    *,
    scale: str | None = None,
    report: Report = ignore,
    until: str | None = None,
    ignore_gates: bool = False,
    sharding: Sharding = "none",
) -> list[StageResult]:
    """Run the stages of a recipe that are not done, and write the checkpoint once all are.

    Args:
        path: the recipe, or its folder.
        run_dir: where state and results go; a later call with the same folder continues.
        data: the folder that the recipe's names start from; by default the recipe's own.
        scale: a scale of the recipe, see `load_recipe`.
        report: called from the beginning on, and about every second while a stage trains.
        until: stop after this stage.
        ignore_gates: go on from stages that miss what they must reach.
        sharding: "fsdp" deals out weights and moments among the processes that torchrun has started.

    Raises:
        ConfigError: the recipe is wrong, the data folder lacks what it names, or a stage misses its gate.
        Interrupted: a signal arrived; the state is on disk.
    """
    return run_loaded(
        load_recipe(path, scale),
        run_dir,
        data,
        report=report,
        until=until,
        ignore_gates=ignore_gates,
        sharding=sharding,
    )


def run_loaded(
    recipe: Recipe,
    run_dir: Path,
    data: Path | None = None,
    *,
    report: Report = ignore,
    until: str | None = None,
    ignore_gates: bool = False,
    sharding: Sharding = "none",
) -> list[StageResult]:
    """As `run_recipe`, of a recipe that is read already."""
    if until is not None and until not in (names := [part.name for part in recipe.in_order()]):
        raise ConfigError(f"no stage {until!r}; stages: {', '.join(names)}")
    folder = recipe.folder if data is None else data
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give the one that holds the recipe's data")
    check_recipe(recipe)
    if sharding == "fsdp":
        for stage in recipe.stages:
            check_sharded(stage)
        check_started()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        processes = join_processes()
        run = _Run(
            recipe,
            run_dir,
            folder,
            report if processes.is_first else ignore,
            ignore_gates=ignore_gates,
            processes=processes,
            sharding=sharding,
        )
        with alone(run_dir) if processes.is_first else contextlib.nullcontext():
            return run.run(until)
    except KeyboardInterrupt as interrupt:  # before or after training, which notices signals itself
        raise Interrupted("stopped between steps; start again to continue", signal.SIGINT) from interrupt
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written, or {folder} read: {error}") from error
    finally:
        leave_processes()


class _Run:
    """One recipe on its way through a run folder."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        data: Path,
        report: Report,
        *,
        ignore_gates: bool = False,
        processes: Processes = ALONE,
        sharding: Sharding = "none",
    ) -> None:
        self.recipe, self.run_dir, self.data, self.report = recipe, run_dir, data, report
        self.source, self.ignore_gates = data, ignore_gates
        self.prepared = ""
        self.known_files = FileDigests(run_dir / "files.json")
        self.processes, self.sharding, self.device = processes, sharding, processes.device

    def run(self, until: str | None) -> list[StageResult]:
        """The results of all stages up to `until`, or up to the last."""
        recipe = self.recipe
        if recipe.prepare is not None:
            output = self.run_dir / "prepared"
            with self.processes.in_turn():
                known = self.known_files
                known.read()
                self.prepared = prepare_data(recipe, recipe.prepare, self.data, output, self.report, known)
                if self.processes.is_first:
                    known.save()
            self.data = output
        self._require_files()
        digests, tokenizer = self._digests()
        results: list[StageResult] = []
        *_, last = digests
        for name in digests:
            self.recipe = with_found(recipe, self.run_dir)
            (part,) = (one for one in self.recipe.in_order() if one.name == name)
            if isinstance(part, StageConfig) or part.after is not None:
                with self.processes.in_turn():
                    finished(self.run_dir / name, digests[name])  # refuses before anything is replaced
                    self._make_tokenizer(tokenizer)
            is_new = not (self.run_dir / part.name / RESULT_NAME).is_file()
            done = self._done(part, digests[part.name], results)
            results.append(done)
            if is_new or part.name == last:  # what is done already is reported, but for gates that changed
                self._report_on(results)
            if isinstance(part, StageConfig):
                self._check_gate(part, done)
            if part.name == until:
                return results
        with self.processes.in_turn():
            checkpoint, identity = self.run_dir / CHECKPOINT_NAME, repr((list(digests.items()), tokenizer))
            # What starts from it goes by its files' times: one that is there is not written again.
            if self.processes.is_first and not (checkpoint.is_dir() and is_marked(checkpoint, identity)):
                mark(write_checkpoint(self.recipe, self.run_dir), identity)
        return results

    def _done(self, part: StageConfig | StepConfig, digest: str, before: list[StageResult]) -> StageResult:
        """What a stage or a step has reached; it is run where it is not done."""
        with self.processes.in_turn():
            done = finished(self.run_dir / part.name, digest)
            if done is None and isinstance(part, StepConfig):  # the first process does it, the others find it
                done = self._run_step(part, digest)
        if done is None and isinstance(part, StageConfig):
            done = self._run_stage(part, digest)
        assert done is not None
        if self.processes.is_first:
            write_text(self.run_dir / "results.md", result_table([*before, done]))
        return done

    def _report_on(self, results: list[StageResult]) -> None:
        if self.processes.is_first:
            write_report(self.recipe, self.run_dir, results)

    def _check_gate(self, stage: StageConfig, result: StageResult) -> None:
        """Refuses to go on from a stage that has not reached what it must; its weights stay."""
        figures = {"loss": result.loss, **result.figures}
        if (phrases := missed(stage.gate, figures)) and not self.ignore_gates:
            raise ConfigError(
                f"stage {stage.name} misses its gate: {'; '.join(phrases)}; its weights are in "
                f"{self.run_dir / stage.name}: mend the recipe and delete that folder, or change the gate; "
                "then start again"
            )

    def _require_files(self) -> None:
        """Refuses at once what a stage would miss after hours."""
        for reader, names in files_needed(self.recipe).items():
            for name in names:
                if not (self.data / name).is_file():
                    raise ConfigError(
                        f"{reader} reads {name}, and {self.data} holds no such file; put it there, or "
                        "correct the recipe"
                    )

    def _make_tokenizer(self, digest: str) -> None:
        """Writes the run's tokenizer, unless one of this digest lies there."""
        recipe, path = self.recipe, self.run_dir / TOKENIZER_NAME
        if path.is_file() and is_marked(path, digest):
            return
        if (own := own_tokenizer(recipe)) is not None:
            with atomic_write(path) as file:
                file.write(own)
        else:
            assert recipe.tokenizer is not None
            places = [self._place(name) for name in tokenizer_sources(recipe)]
            write_text(path, train_tokenizer(recipe.tokenizer, places, self.report))
        mark(path, digest)

    def _place(self, name: str) -> Path:
        """Where a file lies that the recipe names."""
        return (self.data if step_of(name) is None else self.run_dir) / name

    def _digests(self) -> tuple[dict[str, str], str]:
        """Those of stages and steps, and the tokenizer's."""
        known, is_prepared = self.known_files, self.recipe.prepare is not None
        data = DataDigests(known, self.data, self.source, is_prepared, self.report)
        with self.processes.in_turn():  # the first one reads large files, the others find their digests
            known.read()
            try:
                return part_digests(self.recipe, self.prepared, data)
            finally:
                if self.processes.is_first:
                    known.save()

    def _encoder(self) -> ConversationEncoder:
        recipe = self.recipe
        return ConversationEncoder(self.run_dir / TOKENIZER_NAME, recipe.chat_template, recipe.model)

    def _context(self, stage: StageConfig) -> TrainingContext:
        recipe, index = self.recipe, self.recipe.stages.index(stage)
        return TrainingContext(
            stage=stage.name,
            seed=recipe.seed + index,
            data=self.data,
            cache=self.run_dir / "cache",
            encoder=self._encoder(),
            device=self.device,
            limits=model_limits(recipe.model_after(stage.name)),
            is_fresh=not stage.starts_from and stage.checkpoint is None and recipe.base is None,
            report=self.report,
            made=self.run_dir / MADE,
        )

    def _run_step(self, step: StepConfig, digest: str) -> StageResult:
        recipe, folder = self.recipe, self.run_dir / step.name
        weights = None
        if (after := step.after) is not None:
            weights = Weights(
                lambda: model_after(recipe, self.run_dir, after).to(self.device).eval(),
                lambda folder: checkpoint_after(recipe, self.run_dir, folder, after),
                self._encoder(),
            )
        context = StepContext(
            step=step.name,
            identity=digest,
            source=self.source,
            seed=step_seed(step, recipe.seed),
            path=self._place,
            output=self.run_dir / MADE / f"{step.name}.partial",
            work=folder,
            weights=weights,
            device=self.device,
            report=self.report,
        )
        outcome, seconds = run_step(step, context, self.run_dir)
        check_made(recipe, self.run_dir, step)
        result = StageResult(step.name, 0, seconds, outcome.units, outcome.unit, 0.0, outcome.figures, digest)
        write_text(folder / RESULT_NAME, json.dumps(dataclasses.asdict(result), indent=1))
        return result

    def _run_stage(self, stage: StageConfig, digest: str) -> StageResult:
        context = self._context(stage)
        if self.sharding == "fsdp":
            stage = dataclasses.replace(stage, compile=False)  # a compiled pass would hide the layers
        training = StageTraining(
            self.recipe, stage, self.run_dir, context, digest, self.processes, self.sharding
        )
        return training.run()
