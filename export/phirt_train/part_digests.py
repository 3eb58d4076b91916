"""What each stage and step of a run is a function of, as a SHA-256 by its name, and the run's tokenizer.

Knows recipes and digests of files. Knows nothing of how anything is carried out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from phirt_export.chat_files import tokenizer_bytes
from phirt_train.data_digests import DataDigests
from phirt_train.given_tokenizer import given_tokenizer
from phirt_train.outside import find_outside, weights_identity
from phirt_train.recipe import Recipe
from phirt_train.schedules import course_of
from phirt_train.stage import StageConfig
from phirt_train.step import StepConfig, step_of
from phirt_train.step_run import made_digests, step_digest, step_seed


def own_tokenizer(recipe: Recipe) -> bytes | None:
    """The tokenizer that is taken as it is; None where one is learnt."""
    if recipe.tokenizer is None:
        assert recipe.base is not None
        return tokenizer_bytes(recipe.base)
    if recipe.tokenizer.file is None:
        return None
    return given_tokenizer(find_outside(recipe.tokenizer.file, recipe.folder))


def tokenizer_sources(recipe: Recipe) -> tuple[str, ...]:
    """The files that the tokenizer is learnt from: by default those of stages that are there before all."""
    assert recipe.tokenizer is not None
    every = dict.fromkeys(name for stage in recipe.stages for name in stage.data.files())
    first = {None, *(step.name for step in recipe.steps_after(None))}
    return recipe.tokenizer.sources or tuple(name for name in every if step_of(name) in first)


def part_digests(recipe: Recipe, prepared: str, data: DataDigests) -> tuple[dict[str, str], str]:
    """For each stage and step one digest, over all that its outcome is a function of: sizes, seed, text, its
    own table, its files with the media that they name, and the digests of the stages that it starts from and
    the steps whose data it reads. What a stage must reach is not among it. Then the tokenizer's.

    Args:
        prepared: the digest of what the recipe's own code has written.
    """
    base = [] if recipe.base is None else weights_identity(recipe.base)
    common: tuple[Any, ...] = (recipe.model, recipe.tokenizer, recipe.chat_template, prepared, base)
    digests: dict[str, str] = {}

    def add(step: StepConfig, common: object) -> None:
        facts = (common, data.beside(step), _read(step.files(), data.with_media))
        digests[step.name] = step_digest(step, step_seed(step, recipe.seed), facts, digests)

    for step in recipe.steps_after(None):
        add(step, common)
    tokenizer = _tokenizer_digest(recipe, prepared, data, digests)
    common = (*common, tokenizer)
    for index, stage in enumerate(recipe.stages):
        read = _read((*stage.files(), *stage.optional_files()), data.with_media)
        facts = (recipe.seed + index, common, read)
        digests[stage.name] = _stage_digest(recipe, stage, facts, digests)
        for step in recipe.steps_after(stage.name):
            add(step, common)
    return digests, tokenizer


def _stage_digest(recipe: Recipe, stage: StageConfig, facts: object, digests: Mapping[str, str]) -> str:
    before: list[Any] = [digests[name] for name in stage.starts_from]
    if stage.checkpoint is not None:
        before.append(weights_identity(find_outside(stage.checkpoint, recipe.folder)))
    before += made_digests((*stage.files(), *stage.optional_files()), digests)
    course = course_of(recipe.stages, stage.name)  # the rates of a chain depend on its later stages
    asked = dataclasses.replace(stage, gate={}, tokens=None, item_tokens=None, workers=None)
    rope = recipe.model_after(stage.name).decoder.rope
    return _digest((facts, asked, before, course, rope))


def _tokenizer_digest(recipe: Recipe, prepared: str, data: DataDigests, digests: Mapping[str, str]) -> str:
    if (own := own_tokenizer(recipe)) is not None:
        return hashlib.sha256(own).hexdigest()
    names = tokenizer_sources(recipe)
    made = [digests.get(maker) for name in names if (maker := step_of(name)) is not None]
    return _digest((recipe.tokenizer, names, prepared, made, _read(names, data.file)))


def _read(names: Iterable[str], digest_of: Callable[[str], str | None]) -> list[tuple[str, str]]:
    return [(name, digest) for name in names if (digest := digest_of(name)) is not None]


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
