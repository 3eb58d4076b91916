"""Whether training one route has hurt another: each route's measures before and after.

Knows measures with their errors. Knows nothing of routes' adapters or of how they are trained. A measure is
worse where it has moved to the bad side by more than so many standard errors of the pairs; one whose error is
not known, where it has moved at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from phirt.errors import ConfigError
from phirt_quant.metrics import METRICS, Estimate

ERRORS = 2.0

Scores = Mapping[str, Mapping[str, Estimate]]
"""Of each route, or task of one, the estimates by measure (names of METRICS)."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One measure of one route: its values, how much better it became (less than 0: worse) with the standard
    error, and whether it is worse than chance explains.
    """

    route: str
    metric: str
    before: float
    after: float
    gain: float
    standard_error: float | None
    is_worse: bool


@dataclasses.dataclass(frozen=True)
class Interference:
    """All measures that were taken before and after."""

    changes: tuple[Change, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """The routes with a measure that is worse."""
        return tuple(dict.fromkeys(change.route for change in self.changes if change.is_worse))

    def table(self) -> str:
        """The changes as a Markdown table."""
        lines = ["| route | measure | before | after | better by | verdict |", "|---|---|---|---|---|---|"]
        for one in self.changes:
            error = "" if one.standard_error is None else f" ± {one.standard_error:.2g}"
            verdict = "worse" if one.is_worse else "as good"
            lines.append(
                f"| {one.route} | {one.metric} | {one.before:.4g} | {one.after:.4g} | {one.gain:+.3g}{error} "
                f"| {verdict} |"
            )
        return "\n".join(lines) + "\n"


def interference(before: Scores, after: Scores, errors: float = ERRORS) -> Interference:
    """The changes of all routes that were scored before a training, by its end.

    Raises:
        ConfigError: a route or measure is missing after, or was taken of other items.
    """
    changes = []
    for route, measures in before.items():
        for metric, old in measures.items():
            new = after.get(route, {}).get(metric)
            if new is None or len(new.influence) != len(old.influence):
                raise ConfigError(
                    f"{metric} of route {route} was measured on {len(old.influence)} items before and on "
                    f"{0 if new is None else len(new.influence)} after; measure both on the same"
                )
            changes.append(_change(route, metric, old, new, errors))
    return Interference(tuple(changes))


def _change(route: str, metric: str, old: Estimate, new: Estimate, errors: float) -> Change:
    difference, error = new.minus(old)
    gain = -difference if METRICS[metric].smaller_is_better else difference
    return Change(route, metric, old.value, new.value, gain, error, gain < -errors * (error or 0.0))
