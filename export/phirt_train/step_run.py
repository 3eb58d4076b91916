"""Carries out the steps of a run: each once, when its turn comes, into a folder that is whole or not there.

Knows folders, the order of steps, and digests. Knows nothing of what a step does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json, read_dataclass
from phirt.runtime.atomic_file import write_text
from phirt_export.reference import RopeConfig
from phirt_train.recipe import Recipe
from phirt_train.stage import StageConfig
from phirt_train.stage_fields import RopeChange
from phirt_train.step import MADE, StepConfig, StepContext, StepOutcome, step_of
from phirt_train.steps import find_step

_IDENTITY_NAME = "identity"  # in a step's work folder: what the work there is a function of


def files_needed(recipe: Recipe) -> dict[str, list[str]]:
    """By stage and step, the files that the recipe's data folder must hold: all but those that steps make."""
    return {
        reader: [name for name in names if step_of(name) is None] for reader, names in _files(recipe).items()
    }


def _files(recipe: Recipe) -> dict[str, list[str]]:
    """What each stage and step reads."""
    readers = {f"stage {stage.name}": list(stage.files()) for stage in recipe.stages}
    return readers | {f"step {step.name}": list(step.options.files()) for step in recipe.steps}


def with_found(recipe: Recipe, run_dir: Path) -> Recipe:
    """The recipe with the rotary embeddings that searches have found so far.

    Raises:
        ConfigError: a file of one is damaged, or for another context than its stage says.
    """

    def known(stage: StageConfig) -> StageConfig:
        found = None if stage.rope is None else stage.rope.found
        if found is None or not (path := run_dir / found).is_file():
            return stage
        remedy = f"delete {path.parent} and what comes after it"
        document = parse_json(path.read_bytes(), str(path), ConfigError, remedy)
        fields = Fields(document, str(path), ConfigError, remedy)
        rope = read_dataclass(RopeConfig, fields)
        said = stage.rope.context if stage.rope is not None else None
        if said is not None and rope.context != said:
            raise ConfigError(
                f"stage {stage.name} says that {found} is for a context of {said}, and the search was for "
                f"{rope.context}; give both the same"
            )
        return dataclasses.replace(stage, rope=RopeChange.of(rope))

    return dataclasses.replace(recipe, stages=tuple(map(known, recipe.stages)))


def made_digests(names: Iterable[str], digests: Mapping[str, str]) -> list[str]:
    """Digests of the steps that make the files of these names."""
    makers = dict.fromkeys(maker for name in names if (maker := step_of(name)) is not None)
    return [digests[maker] for maker in makers]


def step_digest(step: StepConfig, seed: int, common: object, digests: Mapping[str, str]) -> str:
    """SHA-256 over all that a step's outcome is a function of: its table, the weights that it works with, and
    what it reads.
    """
    before = [] if step.after is None else [digests[step.after]]
    facts = repr((seed, common, step, before, made_digests(step.options.files(), digests)))
    return hashlib.sha256(facts.encode()).hexdigest()


def step_seed(step: StepConfig, seed: int) -> int:
    """The step's own, from the recipe's: two rounds of one kind do not draw the same."""
    return (seed + zlib.crc32(step.name.encode())) & 0x7FFFFFFF


def run_step(step: StepConfig, context: StepContext, run_dir: Path) -> tuple[StepOutcome, float]:
    """Carry a step out; what it made lies in `made` afterwards. Returns its outcome and the seconds it took.

    Raises:
        ConfigError: the step says so, or it did not make what it should.
    """
    begun = time.monotonic()
    shutil.rmtree(context.output, ignore_errors=True)
    context.output.mkdir(parents=True)
    _claim_work(context)
    context.note(f"beginning {step.kind}")
    outcome = find_step(step.kind).run(step.options, context)
    final = run_dir / MADE / step.name
    shutil.rmtree(final, ignore_errors=True)
    context.output.replace(final)
    return outcome, time.monotonic() - begun


def _claim_work(context: StepContext) -> None:
    """Keeps what a step that was cut off has left if it is of the same weights, options and data; otherwise
    the work begins anew.
    """
    mark = context.work / _IDENTITY_NAME
    kept = mark.read_text(encoding="utf-8", errors="replace") if mark.is_file() else None
    if kept != context.identity:
        shutil.rmtree(context.work, ignore_errors=True)
        context.work.mkdir(parents=True)
        write_text(mark, context.identity)


def check_made(recipe: Recipe, run_dir: Path, step: StepConfig) -> None:
    """Raises ConfigError where a step has not made what later stages and steps read of it."""
    for reader, names in _files(recipe).items():
        for name in names:
            if step_of(name) == step.name and not (run_dir / name).is_file():
                there = sorted(path.name for path in (run_dir / MADE / step.name).iterdir())
                raise ConfigError(
                    f"{reader} reads {name}, which step {step.name} did not make; it made: "
                    f"{', '.join(there) or 'nothing'}"
                )
