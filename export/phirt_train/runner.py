"""Runs a recipe: tokenizer first, then each stage that is not done yet, and a table of what they reached.

Knows the order of stages and the run folder. Knows nothing of objectives' insides.

A run folder holds `tokenizer.json`, `cache/`, and for each stage `state.safetensors` while it runs, then
`model.safetensors` (every tensor trained so far) and `result.json`; at the end `checkpoint/`, which `phirt
export` takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from phirt.errors import ConfigError
from phirt_export.reference import Model, initialize
from phirt_train.context import TrainingContext
from phirt_train.loop import Objective, StageResult, StageRun, save_tensors
from phirt_train.objectives import OBJECTIVES
from phirt_train.progress import Progress, Report, ignore
from phirt_train.quantize_aware import set_weight_grid, snap_weights
from phirt_train.recipe import Recipe, StageConfig, load_recipe
from phirt_train.tokenizer import train_tokenizer


def _write_text(path: Path, text: str) -> None:
    staging = path.with_suffix(path.suffix + ".partial")
    with staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def _load_into(model: Model, tensors: dict[str, Tensor]) -> None:
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def _trained_before(stage: StageConfig, run_dir: Path) -> dict[str, Tensor]:
    """The tensors of the stages it starts from, which must agree where they overlap."""
    tensors: dict[str, Tensor] = {}
    for name in stage.starts_from:
        more = load_file(run_dir / name / "model.safetensors")
        unlike = [key for key in more if key in tensors and not torch.equal(more[key], tensors[key])]
        if unlike:
            raise ConfigError(
                f"stage {stage.name} starts from stages that trained {unlike[0]} apart; "
                "start from the later one alone"
            )
        tensors |= more
    return tensors


def _run_stage(
    recipe: Recipe, index: int, run_dir: Path, context: TrainingContext, digest: str, report: Report
) -> StageResult:
    stage, folder = recipe.stages[index], run_dir / recipe.stages[index].name
    folder.mkdir(parents=True, exist_ok=True)
    report(Progress(stage.name, 0, stage.steps, "steps", "reading the data"))
    torch.manual_seed(context.seed)
    model = Model(recipe.model)
    initialize(model, recipe.seed)
    before = _trained_before(stage, run_dir)
    _load_into(model, before)
    model.to(context.device)
    objective: Objective = OBJECTIVES[stage.objective](model, stage, context)
    objective.head.to(context.device)
    if stage.quantize_aware:
        set_weight_grid(model, stage.quantize_aware)
    run = StageRun(model, objective, stage, folder, context.seed, digest)
    result = run.run(report)
    if stage.quantize_aware:
        snap_weights(model)
    state = model.state_dict()
    trained = {name for name in run.parameters if not name.startswith("head.")} | set(run.buffers)
    save_tensors(before | {name: state[name] for name in trained}, folder / "model.safetensors")
    _write_text(folder / "result.json", json.dumps(dataclasses.asdict(result), indent=1))
    run.state_path.unlink(missing_ok=True)
    return result


def stage_digests(recipe: Recipe) -> list[str]:
    """One SHA-256 a stage, over all that its weights are a function of: sizes, seed, its own table and those
    of the stages it starts from.
    """
    digests: dict[str, str] = {}
    for index, stage in enumerate(recipe.stages):
        before = [digests[name] for name in stage.starts_from]
        facts = repr((recipe.seed + index, recipe.model, recipe.tokenizer, stage, before))
        digests[stage.name] = hashlib.sha256(facts.encode()).hexdigest()
    return list(digests.values())


def _finished(folder: Path, digest: str) -> StageResult | None:
    """The result of a stage that is done; None while it is not.

    Raises:
        ConfigError: it was done with another recipe.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = StageResult(**json.loads(path.read_text(encoding="utf-8")))
    if result.digest != digest:
        raise ConfigError(
            f"{folder} was trained with another recipe; train into another folder, or delete {folder.name} "
            "and the stages that start from it"
        )
    return result


def _write_checkpoint(recipe: Recipe, run_dir: Path) -> Path:
    """The finished model as a checkpoint folder, staged and renamed."""
    model = Model(recipe.model)
    initialize(model, recipe.seed)
    for stage in recipe.stages:
        _load_into(model, load_file(run_dir / stage.name / "model.safetensors"))
    staging, final = run_dir / "checkpoint.partial", run_dir / "checkpoint"
    shutil.rmtree(staging, ignore_errors=True)
    save_tensors(dict(model.state_dict()), staging / "model.safetensors")
    _write_text(staging / "config.json", recipe.model.to_json())
    _write_text(staging / "chat_template.jinja", recipe.chat_template)
    shutil.copyfile(run_dir / "tokenizer.json", staging / "tokenizer.json")
    shutil.rmtree(final, ignore_errors=True)
    staging.replace(final)
    return final


def result_table(results: list[StageResult]) -> str:
    """The stages and what they reached, as a Markdown table."""
    lines = ["| stage | steps | items | minutes | loss | held out |", "|---|---|---|---|---|---|"]
    for result in results:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in result.figures.items())
        lines.append(
            f"| {result.name} | {result.steps} | {result.units:,} {result.unit} | {result.seconds / 60:.1f} "
            f"| {result.loss:.3f} | {figures} |"
        )
    return "\n".join(lines) + "\n"


def run_recipe(
    path: Path,
    run_dir: Path,
    data: Path,
    *,
    scale: str | None = None,
    report: Report = ignore,
    until: str | None = None,
) -> list[StageResult]:
    """Run the stages of a recipe that are not done, and write the checkpoint once all are.

    Args:
        path: the recipe.
        run_dir: where state and results go; a later call with the same folder continues.
        data: the data package's folder.
        scale: a scale of the recipe, see `load_recipe`.
        report: called from the beginning on, and every few seconds while a stage trains.
        until: stop after this stage.

    Raises:
        ConfigError: the recipe is wrong or the data folder lacks what it names.
        Interrupted: a signal arrived; the state is on disk.
    """
    recipe = load_recipe(path, scale)
    if not (data / "README.md").is_file():
        raise ConfigError(
            f"{data} is not the data folder; it must hold README.md, text/, images/ and speech/"
        )
    if until is not None and until not in [stage.name for stage in recipe.stages]:
        raise ConfigError(f"no stage {until!r}; stages: {', '.join(stage.name for stage in recipe.stages)}")
    run_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = run_dir / "tokenizer.json"
    if not tokenizer.is_file():
        report(Progress("tokenizer", 0, None, "texts", f"learning {recipe.tokenizer.vocab_size} tokens"))
        _write_text(tokenizer, train_tokenizer(recipe.tokenizer, data))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digests = stage_digests(recipe)
    results: list[StageResult] = []
    for index, stage in enumerate(recipe.stages):
        done = _finished(run_dir / stage.name, digests[index])
        if done is not None:
            results.append(done)
        else:
            context = TrainingContext(recipe.seed + index, data, run_dir / "cache", tokenizer, device)
            results.append(_run_stage(recipe, index, run_dir, context, digests[index], report))
            _write_text(run_dir / "results.md", result_table(results))
        if stage.name == until:
            return results
    _write_checkpoint(recipe, run_dir)
    return results
