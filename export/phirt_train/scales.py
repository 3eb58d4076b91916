"""Scales of a recipe: other sizes and lengths for all of it, under one name.

Knows tables and what replaces what in them. Knows nothing of what the tables mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from phirt.fields import Range


@dataclasses.dataclass(frozen=True)
class Scale:
    """Other values for a whole recipe: of the tables of that name, for every stage (of `data`, those that the
    stage has), and, in `options`, for the options of every step that has them.

    Attributes:
        part: for single stages and steps, by name, values in place of all others.
        step_scale: what the steps of a stage are multiplied by, and those of its warm-up, unless the scale
            says how long that is.
        token_scale: the same for its tokens, where its length is given so.
        gates: whether a stage that misses its gate ends the run.
    """

    step_scale: Annotated[float, Range(1e-6, 1e6)] = 1.0
    token_scale: Annotated[float, Range(1e-15, 1e6)] = 1.0
    gates: bool = True
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepare: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the nested values of `changes` in place."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def scaled_stage(table: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """A stage's table with what the scale has for all stages, and for it; steps replace tokens, and the
    reverse.
    """
    changed = _with_length(merged(table, scale.stage), scale.stage)
    changed["data"] = merged_known(table.get("data"), scale.stage.get("data"))
    own = _own(table, scale)
    return _with_length(merged(changed, own), own)


def gives_warmup(table: Mapping[str, Any], scale: Scale) -> bool:
    """Whether a scale itself says how long a stage warms up, for all stages or for this one."""
    schedules = [changes.get("schedule") for changes in (scale.stage, _own(table, scale))]
    return any(isinstance(one, Mapping) and "warmup_steps" in one for one in schedules)


def scaled_step(table: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """A step's table with what the scale has for all options, and for it."""
    changed = {**table, "options": merged_known(table.get("options", {}), scale.options)}
    return merged(changed, _own(table, scale))


def _own(table: Mapping[str, Any], scale: Scale) -> Mapping[str, Any]:
    name = table.get("name")
    return scale.part.get(name, {}) if isinstance(name, str) else {}


def _with_length(table: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table without the length that the changes replace."""
    lengths = [name for name in ("steps", "tokens") if name in changes]
    if len(lengths) == 1:
        table.pop("tokens" if lengths == ["steps"] else "steps", None)
    return table


def merged_known(table: Any, changes: Any) -> Any:
    """`table` with those changes in place whose keys it has."""
    if not isinstance(table, Mapping) or not isinstance(changes, Mapping):
        return table
    return merged(table, {key: value for key, value in changes.items() if key in table})
