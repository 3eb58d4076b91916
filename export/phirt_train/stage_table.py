"""One `[[stage]]` or `[[step]]` table of a recipe, read: with what a scale changes, and what follows from
earlier stages and from measured files.

Knows the table and the stages before it. Knows nothing of the recipe's other tables, nor of tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from phirt.errors import ConfigError
from phirt.fields import Fields, Range, read_dataclass, write_dataclass
from phirt_export.reference import ModelConfig, RopeConfig
from phirt_train.objectives import find_objective
from phirt_train.rate_fit import fitted_rate
from phirt_train.scales import Scale, gives_warmup, scaled_stage, scaled_step
from phirt_train.stage import Schedule, StageConfig
from phirt_train.step import StepConfig
from phirt_train.steps import find_step

REMEDY = "correct the recipe"
_UNKNOWN_STEPS = 1  # until the length in tokens is known to be one
_UNKNOWN_RATE = 1.0


@dataclasses.dataclass(frozen=True)
class _DerivedRate:
    """A peak rate that is no number in the recipe: from a file of `rate_fit`, for the tokens of the stage, or
    `times` that of an earlier stage.
    """

    fit: str | None = None
    of: str | None = None
    times: Annotated[float, Range(1e-9, 1e9)] = 1.0

    def __post_init__(self) -> None:
        if (self.fit is None) == (self.of is None):
            raise ValueError("give either 'fit', a file of fitted rates, or 'of', an earlier stage")


def open_fields(value: object, path: Path, *place: str) -> Fields:
    """A table of the recipe; what is not known in it is refused."""
    return Fields(value, ": ".join([str(path), *place]), ConfigError, REMEDY, closed=True)


def read_stage(
    path: Path, table: Mapping[str, Any], scale: Scale, model: ModelConfig, earlier: Mapping[str, StageConfig]
) -> StageConfig:
    """The stage of a table.

    Args:
        path: the recipe, which names start from.
        earlier: the stages before it, by name.

    Raises:
        ConfigError: with its place, what is wrong with it.
    """
    place = _place("stage", table)
    changed = scaled_stage(table, scale)
    derived = _take_derived_rate(changed, path, place)
    if is_budget := "tokens" in changed:
        if "steps" in changed:
            raise ConfigError(f"{path}: {place}: both steps and tokens are given; leave one of them out")
        changed["steps"] = _UNKNOWN_STEPS
    fields = open_fields(changed, path, place)
    try:
        kind = find_objective(fields.text("objective"))
        data = read_dataclass(kind.data, fields.child("data"))
        rest = {key: value for key, value in changed.items() if key != "data"}
        stage = read_dataclass(StageConfig, open_fields(rest, path, place), data=data)
        stage = _with_length(stage, scale, is_budget=is_budget)
        if not gives_warmup(table, scale):
            stage = _with_warmup(stage, scale.token_scale if is_budget else scale.step_scale)
            if "warmup_steps" not in changed.get("schedule", {}):
                stage = _with_default_warmup(stage)
        if derived is not None:
            peak = _rate(derived, stage, path.parent, earlier)
            schedule = {**write_dataclass(stage.schedule), "peak": peak}
            stage = dataclasses.replace(
                stage, schedule=read_dataclass(Schedule, open_fields(schedule, path, place, "schedule"))
            )
        stage = stage if scale.gates else dataclasses.replace(stage, gate={})
        ropes = stage_ropes(model.decoder.rope, [*earlier.values(), stage])
        stage.check(with_rope(model, ropes[stage.name]))
    except ConfigError as error:
        raise _placed(error, path, place) from error
    return stage


def read_step(
    path: Path, table: Mapping[str, Any], scale: Scale, models: Mapping[str | None, ModelConfig]
) -> StepConfig:
    """The step of a table.

    Args:
        path: the recipe.
        models: the model as each stage leaves it, and, for None, as it is before all.

    Raises:
        ConfigError: with its place, what is wrong with it.
    """
    place = _place("step", table)
    merged = scaled_step(table, scale)
    fields = open_fields(merged, path, place)
    try:
        kind = find_step(fields.text("kind"))
        options = read_dataclass(kind.options, fields.child("options"))
        rest = {key: value for key, value in merged.items() if key != "options"}
        step = read_dataclass(StepConfig, open_fields(rest, path, place), options=options)
        if kind.needs_model and step.after is None:
            raise ConfigError(f"{step.kind} needs a model; name the stage that it comes 'after'")
        step.check(models.get(step.after, models[None]))
    except ConfigError as error:
        raise _placed(error, path, place) from error
    return step


def _place(kind: str, table: Mapping[str, Any]) -> str:
    name = table.get("name")
    return f"{kind} {name}" if isinstance(name, str) else f"a {kind}"


def _placed(error: ConfigError, path: Path, place: str) -> ConfigError:
    text = str(error)
    return error if text.startswith(str(path)) else ConfigError(f"{path}: {place}: {text}")


def _with_length(stage: StageConfig, scale: Scale, *, is_budget: bool) -> StageConfig:
    """The stage with the steps that its length comes to at this scale."""
    if not is_budget:
        return dataclasses.replace(stage, steps=max(1, round(stage.steps * scale.step_scale)))
    assert stage.tokens is not None
    tokens = stage.tokens * scale.token_scale
    steps = max(1, round(tokens / (stage.batch * stage.tokens_of_item)))
    return dataclasses.replace(stage, steps=steps, tokens=tokens)


def _with_warmup(stage: StageConfig, ratio: float) -> StageConfig:
    """The stage with a warm-up as long, of its steps, as at the recipe's own scale."""
    schedule = stage.schedule
    if ratio == 1 or schedule.resumes:
        return stage
    steps = min(round(schedule.warmup_steps * ratio), 10**9)
    if ratio < 1:
        steps = min(steps, stage.steps - 1)
    return dataclasses.replace(stage, schedule=dataclasses.replace(schedule, warmup_steps=steps))


def _with_default_warmup(stage: StageConfig) -> StageConfig:
    """The stage with a warm-up of a tenth of its steps where the usual one is longer than it is."""
    if stage.schedule.resumes or stage.schedule.warmup_steps <= stage.steps:
        return stage
    schedule = dataclasses.replace(stage.schedule, warmup_steps=stage.steps // 10)
    return dataclasses.replace(stage, schedule=schedule)


def _take_derived_rate(changed: dict[str, Any], path: Path, place: str) -> _DerivedRate | None:
    """What the table says of its peak rate where that is no number; a number takes its place meanwhile."""
    schedule = changed.get("schedule")
    if not isinstance(schedule, Mapping) or not isinstance(schedule.get("peak"), Mapping):
        return None
    fields = open_fields(dict(schedule["peak"]), path, place, "schedule", "peak")
    changed["schedule"] = {**schedule, "peak": _UNKNOWN_RATE}
    return read_dataclass(_DerivedRate, fields)


def _rate(
    derived: _DerivedRate, stage: StageConfig, folder: Path, earlier: Mapping[str, StageConfig]
) -> float:
    if derived.fit is not None:
        tokens = stage.steps * stage.batch * stage.tokens_of_item
        return derived.times * fitted_rate(folder / derived.fit, tokens)
    if derived.of is None or derived.of not in earlier:
        raise ConfigError(f"schedule.peak is that of {derived.of!r:.80}, which is no earlier stage")
    peak = earlier[derived.of].schedule.peak
    if peak is None:
        raise ConfigError(f"schedule.peak is that of {derived.of}, which has none of its own; give a number")
    return derived.times * peak


def with_rope(model: ModelConfig, rope: RopeConfig) -> ModelConfig:
    """The model with another rotary embedding."""
    return dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, rope=rope))


def stage_ropes(rope: RopeConfig, stages: Iterable[StageConfig]) -> dict[str, RopeConfig]:
    """The rotary embedding of each stage, by its name: that of the stages that it starts from, with its own
    change.

    Args:
        rope: the model's.
        stages: in the order in which they run.

    Raises:
        ConfigError: a stage starts from stages that changed it in different ways.
    """
    ropes: dict[str, RopeConfig] = {}
    for stage in stages:
        before = [ropes[name] for name in stage.starts_from if name in ropes]
        changed = list(dict.fromkeys(one for one in before if one != rope))
        if len(changed) > 1:
            raise ConfigError(
                f"stage {stage.name} starts from stages of different rotary embeddings; start from the later "
                "one alone"
            )
        start = changed[0] if changed else rope
        ropes[stage.name] = start if stage.rope is None else stage.rope.apply(start)
    return ropes
