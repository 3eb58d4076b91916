"""Parts of a stage's table that say what it must reach and how its positions turn.

Knows numbers, and which of them belong together. Knows nothing of stages, files or tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

from phirt.errors import ConfigError
from phirt.fields import Length, Range
from phirt_export.reference import RopeConfig

_Finite = Annotated[float, Range(-1e30, 1e30)]
_Factors = Annotated[tuple[Annotated[float, Range(1e-9, 1e9)], ...], Length(1, 1 << 15)]


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a figure must be: not over `most`, not under `least`."""

    most: _Finite | None = None
    least: _Finite | None = None

    def __post_init__(self) -> None:
        if self.most is None and self.least is None:
            raise ValueError("neither 'most' nor 'least' is given; a gate without a bound lets all pass")

    def holds(self, value: float) -> bool:
        """Whether a figure is within."""
        low = -math.inf if self.least is None else self.least
        return low <= value <= (math.inf if self.most is None else self.most)

    def __str__(self) -> str:
        bounds = [("most", self.most), ("least", self.least)]
        return " and ".join(f"at {name} {value:g}" for name, value in bounds if value is not None)


Gate = Annotated[Mapping[str, Bound], Length(0, 64)]


def missed(gate: Mapping[str, Bound], figures: Mapping[str, float]) -> list[str]:
    """What of a gate the figures do not reach, a phrase each; a figure that was not measured is missed."""
    known = ", ".join(figures) or "none"
    phrases = []
    for name, bound in gate.items():
        if name not in figures:
            phrases.append(f"{name} was not measured (figures: {known})")
        elif not bound.holds(figures[name]):
            phrases.append(f"{name} is {figures[name]:.4g}, wanted {bound}")
    return phrases


@dataclasses.dataclass(frozen=True)
class RopeChange:
    """What a stage changes of its rotary embedding; the stages that start from it have it, too.

    Without factors of its own the new base holds for the whole context, unless `original_context` says up to
    where (see `RopeConfig`). With `found`, a file that a search makes as a step (made/STEP/rope.json), that
    file decides all, and `context` says beforehand what it will be.
    """

    theta: Annotated[float, Range(1e-9, 1e13)] | None = None
    context: Annotated[int, Range(2, 1 << 24)] | None = None
    original_context: Annotated[int, Range(2, 1 << 24)] | None = None
    short_factor: _Factors | None = None
    long_factor: _Factors | None = None
    magnitude: Annotated[float, Range(1e-9, 1e9)] | None = None
    found: str | None = None

    def __post_init__(self) -> None:
        others = [one.name for one in dataclasses.fields(self) if one.name not in ("found", "context")]
        if self.found is not None and (given := [name for name in others if getattr(self, name) is not None]):
            raise ValueError(f"{given[0]} is given, and what was found decides it; leave one of them out")

    @classmethod
    def of(cls, rope: RopeConfig) -> RopeChange:
        """A change to this embedding, whatever it was before."""
        return cls(
            theta=rope.theta,
            context=rope.context,
            original_context=rope.original_context,
            short_factor=rope.short_factor,
            long_factor=rope.long_factor,
            magnitude=rope.magnitude,
        )

    def apply(self, rope: RopeConfig) -> RopeConfig:
        """The rotary embedding with the change. Raises ConfigError where the factors do not fit."""
        given: dict[str, Any] = {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name != "found" and (value := getattr(self, field.name)) is not None
        }
        changed = dataclasses.replace(rope, **given)
        if self.original_context is None and changed.short_factor == changed.long_factor:
            changed = dataclasses.replace(changed, original_context=changed.context)
        if changed.original_context > changed.context:
            raise ConfigError(
                f"rope has an original_context of {changed.original_context}, longer than the context of "
                f"{changed.context}; give both"
            )
        return changed
