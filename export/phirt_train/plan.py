"""What a recipe would do, as a table: for each stage its start, its parameters, its length, its context and
its rate. Nothing is trained, and no weight is made: a model of any published size is counted.

Knows recipes and parameters' sizes. Knows nothing of data.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from phirt_export.reference import Model, RopeConfig
from phirt_train.components import by_component
from phirt_train.recipe import Recipe
from phirt_train.schedules import Course, course_of
from phirt_train.selection import trained_names
from phirt_train.stage import StageConfig
from phirt_train.step import StepConfig

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_COLUMNS = (
    "stage", "objective", "starts from", "trained", "frozen", "what is trained", "steps", "batch", "length",
    "per trained weight", "context", "rope", "peak rate", "gate",
)  # fmt: skip


def rounded(count: float) -> str:
    """A count in three digits, such as 3.84B."""
    for size, name in _UNITS:
        if count >= size * 0.9995:
            return f"{count / size:.3g}{name}"
    return f"{count:.3g}"


def plan_table(recipe: Recipe) -> str:
    """The stages as a Markdown table, below a line with the model's size."""
    sizes = parameter_sizes(recipe)
    parts = ", ".join(f"{name} {rounded(count)}" for name, count in by_component(sizes).items())
    total = sum(sizes.values())
    lines = [f"{recipe.name}: {rounded(total)} weights ({total:,}): {parts}", ""]
    lines += [_line(_COLUMNS), "|---" * len(_COLUMNS) + "|"]
    for part in recipe.in_order():
        lines.append(_line(_step_row(part) if isinstance(part, StepConfig) else _row(recipe, part, sizes)))
    return "\n".join(lines) + "\n"


def parameter_sizes(recipe: Recipe) -> dict[str, int]:
    """How many weights each tensor of the model has, by its name."""
    with torch.device("meta"):
        return {name: one.numel() for name, one in Model(recipe.model).named_parameters()}


def stage_length(stage: StageConfig) -> tuple[float, str]:
    """What a stage learns from in all, and its unit: tokens where an item has a number of them."""
    items = stage.steps * stage.batch
    if stage.tokens is None and stage.tokens_of_item == 1:
        return items, "items"
    return items * stage.tokens_of_item, "tokens"


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _step_row(step: StepConfig) -> tuple[str, ...]:
    """A step trains nothing: what it is, and where it stands."""
    return (step.name, f"step {step.kind}", step.after or "", *[""] * (len(_COLUMNS) - 3))


def _row(recipe: Recipe, stage: StageConfig, sizes: Mapping[str, int]) -> tuple[str, ...]:
    names = trained_names(sizes, stage)
    trained = sum(sizes[name] for name in names)
    rope = recipe.model_after(stage.name).decoder.rope
    length, unit = stage_length(stage)
    course = course_of(recipe.stages, stage.name)
    return (
        stage.name,
        stage.objective,
        ", ".join([*([stage.checkpoint] if stage.checkpoint else []), *stage.starts_from]) or "scratch",
        rounded(trained),
        rounded(sum(sizes.values()) - trained),
        ", ".join(by_component(sizes, names)),
        f"{stage.steps:,}",
        f"{stage.batch:,}",
        f"{rounded(length)} {unit}",
        f"{length / trained:.3g}",
        f"{rope.context:,}",
        _described(rope) + (", factors by search" if stage.rope is not None and stage.rope.found else ""),
        _rates(stage, course),
        "; ".join(f"{name} {bound}" for name, bound in stage.gate.items()),
    )


def _rates(stage: StageConfig, course: Course) -> str:
    """The peak; where an earlier stage's schedule goes on, the rates at both ends."""
    if stage.schedule.resumes:
        return f"{course.rate(0):.3g} to {course.rate(stage.steps - 1):.3g}"
    assert stage.schedule.peak is not None
    return f"{stage.schedule.peak:.3g}"


def _described(rope: RopeConfig) -> str:
    scaled = ", long factors" if rope.has_long_regime else ""
    return f"{rope.theta:,.0f}{scaled}"
