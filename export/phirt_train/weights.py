"""Weights of a run: what a stage starts from, what it leaves, and the checkpoint at the end.

Knows the run folder's tensors and the reference model. Knows nothing of steps, data or objectives.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import write_text
from phirt_export.chat_files import TEMPLATE_NAME, TOKENIZER_NAME
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.checkpoint_scores import available_memory
from phirt_export.model_weights import load_model
from phirt_export.reference import Model, ModelConfig, initialize
from phirt_export.reference.config import CONFIG_NAME
from phirt_train.outside import check_outside, find_outside, read_outside
from phirt_train.recipe import Recipe
from phirt_train.selection import check_rates, trained_names
from phirt_train.stage import StageConfig
from phirt_train.state_file import read_tensors, save_tensors

WEIGHTS_NAME = "model.safetensors"
CHECKPOINT_NAME = "checkpoint"
MOMENTS_NAME = "moments.safetensors"
_ROOM = 1 << 29  # what torch and a small batch take
_TRAINED_BYTES = 16  # of a trained float32 weight: itself, its gradient, two moments


def fresh_model(recipe: Recipe, config: ModelConfig) -> Model:
    """The model before any stage: drawn from the seed, or the base's; with the rope of `config`."""
    if recipe.base is not None:
        model = load_model(Checkpoint(recipe.base))
        model.set_rope(config.decoder.rope)
        return model
    model = Model(config)
    initialize(model, recipe.seed)
    return model


def load_into(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's of the same names."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def weights_before(recipe: Recipe, stage: StageConfig, run_dir: Path) -> dict[str, Tensor]:
    """The tensors of the checkpoint and the stages that it starts from, which must agree where they
    overlap.
    """
    tensors: dict[str, Tensor] = {}
    if stage.checkpoint is not None:
        path = find_outside(stage.checkpoint, recipe.folder)
        tensors |= read_outside(path, check_outside(path, stage, recipe.model_after(stage.name)))
    for name in stage.starts_from:
        more = read_tensors(run_dir / name / WEIGHTS_NAME)
        unlike = [key for key in more if key in tensors and not torch.equal(more[key], tensors[key])]
        if unlike:
            raise ConfigError(
                f"stage {stage.name} starts from weights that hold {unlike[0]} apart; start from the later "
                "stage alone"
            )
        tensors |= more
    return tensors


def copied_names(names: Iterable[str], copies: Mapping[str, str]) -> dict[str, str]:
    """For each parameter that becomes a copy, the one that it is copied from.

    Raises:
        ConfigError: there is none of that name.
    """
    known = set(names)
    found: dict[str, str] = {}
    for beginning, source in copies.items():
        copied = [name for name in known if name.startswith(beginning)]
        lost = [name for name in copied if source + name.removeprefix(beginning) not in known]
        if lost or not copied:
            raise ConfigError(
                f"copies has {beginning!r:.80} = {source!r:.80}, and parameters of such names are not there"
            )
        found |= {name: source + name.removeprefix(beginning) for name in copied}
    return found


def check_recipe(recipe: Recipe) -> None:
    """Refuses, before any work, what no parameter fits and what no memory holds.

    Raises:
        ConfigError: as said.
    """
    ropes = [recipe.model_after(stage.name).decoder.rope for stage in recipe.stages]
    # Cosines and sines, and the angles in float64.
    tables = max(rope.original_context * rope.rotary_dim * 16 for rope in ropes)
    try:
        shapes = expected_shapes(recipe.model)
    except RuntimeError as error:  # a tensor with more elements than can be counted
        raise ConfigError(f"a model of these sizes cannot be made: {error}; lower them") from error
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    most = 0
    for stage in recipe.stages:
        copied_names(sizes, stage.copies)
        trained = trained_names(sizes, stage)
        check_rates(trained, stage)
        most = max(most, sum(sizes[name] for name in trained))
        if stage.checkpoint is not None:
            outside = find_outside(stage.checkpoint, recipe.folder)
            check_outside(outside, stage, recipe.model_after(stage.name))
    needed, there = 4 * sum(sizes.values()) + _TRAINED_BYTES * most + tables + _ROOM, available_memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"training {most:,} of the model's {sum(sizes.values()):,} weights needs about "
            f"{needed / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are available; choose smaller sizes, "
            "train fewer parameters at once, or close other programs"
        )


def model_after(recipe: Recipe, run_dir: Path, *stages: str) -> Model:
    """The model with the weights of these stages, later ones over earlier ones."""
    model = fresh_model(recipe, recipe.model_after(*stages))
    for name in stages:
        load_into(model, read_tensors(run_dir / name / WEIGHTS_NAME))
    return model


def checkpoint_after(recipe: Recipe, run_dir: Path, folder: Path, *stages: str) -> Path:
    """The model with the weights of these stages as a checkpoint in `folder`, staged and renamed."""
    staging = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    save_tensors(dict(model_after(recipe, run_dir, *stages).state_dict()), staging / WEIGHTS_NAME)
    write_text(staging / CONFIG_NAME, recipe.model_after(*stages).to_json())
    write_text(staging / TEMPLATE_NAME, recipe.chat_template)
    shutil.copyfile(run_dir / TOKENIZER_NAME, staging / TOKENIZER_NAME)
    shutil.rmtree(folder, ignore_errors=True)
    staging.replace(folder)
    return folder


def write_checkpoint(recipe: Recipe, run_dir: Path) -> Path:
    """The finished model as a checkpoint folder."""
    return checkpoint_after(recipe, run_dir, run_dir / CHECKPOINT_NAME, *(one.name for one in recipe.stages))
