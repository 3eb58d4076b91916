"""Weights of a run: what a stage starts from, what it leaves, and the checkpoint at the end.

Knows the run folder's tensors and the reference model. Knows nothing of steps, data or objectives.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import write_text
from phirt_export.chat_files import TEMPLATE_NAME, TOKENIZER_NAME
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.checkpoint_scores import available_memory
from phirt_export.model_weights import load_model
from phirt_export.reference import Model, initialize
from phirt_export.reference.config import CONFIG_NAME
from phirt_train.loop import save_tensors
from phirt_train.recipe import Recipe
from phirt_train.selection import check_rates, trained_names
from phirt_train.stage import StageConfig

WEIGHTS_NAME = "model.safetensors"
MOMENTS_NAME = "moments.safetensors"
_ROOM = 1 << 29  # what torch and a small batch take
_TRAINED_BYTES = 16  # of a trained float32 weight: itself, its gradient, two moments


def fresh_model(recipe: Recipe) -> Model:
    """The model before any stage: drawn from the seed, or the base's."""
    if recipe.base is not None:
        return load_model(Checkpoint(recipe.base))
    model = Model(recipe.model)
    initialize(model, recipe.seed)
    return model


def load_into(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's of the same names."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def trained_before(stage: StageConfig, run_dir: Path) -> dict[str, Tensor]:
    """The tensors of the stages that it starts from, which must agree where they overlap."""
    tensors: dict[str, Tensor] = {}
    for name in stage.starts_from:
        more = load_file(run_dir / name / WEIGHTS_NAME)
        unlike = [key for key in more if key in tensors and not torch.equal(more[key], tensors[key])]
        if unlike:
            raise ConfigError(
                f"stage {stage.name} starts from stages that trained {unlike[0]} apart; "
                "start from the later one alone"
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
    rope = recipe.model.decoder.rope
    tables = rope.original_context * rope.rotary_dim * 16  # cosines and sines, and the angles in float64
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
    needed, there = 4 * sum(sizes.values()) + _TRAINED_BYTES * most + tables + _ROOM, available_memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"training {most:,} of the model's {sum(sizes.values()):,} weights needs about "
            f"{needed / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are available; choose smaller sizes, "
            "train fewer parameters at once, or close other programs"
        )


def model_after(recipe: Recipe, run_dir: Path, *stages: str) -> Model:
    """The model with the weights of these stages, later ones over earlier ones."""
    model = fresh_model(recipe)
    for name in stages:
        load_into(model, load_file(run_dir / name / WEIGHTS_NAME))
    return model


def checkpoint_after(recipe: Recipe, run_dir: Path, folder: Path, *stages: str) -> Path:
    """The model with the weights of these stages as a checkpoint in `folder`, staged and renamed."""
    staging = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    save_tensors(dict(model_after(recipe, run_dir, *stages).state_dict()), staging / WEIGHTS_NAME)
    write_text(staging / CONFIG_NAME, recipe.model.to_json())
    write_text(staging / TEMPLATE_NAME, recipe.chat_template)
    shutil.copyfile(run_dir / TOKENIZER_NAME, staging / TOKENIZER_NAME)
    shutil.rmtree(folder, ignore_errors=True)
    staging.replace(folder)
    return folder


def write_checkpoint(recipe: Recipe, run_dir: Path) -> Path:
    """The finished model as a checkpoint folder."""
    return checkpoint_after(recipe, run_dir, run_dir / "checkpoint", *(one.name for one in recipe.stages))


def base_identity(recipe: Recipe) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the base's files; what is trained depends on them."""
    if recipe.base is None:
        return []
    files = sorted(path for path in recipe.base.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
