"""The report of a run: for people as Markdown, for programs as JSON.

Knows what stages reached and recorded. Knows nothing of how they were trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phirt.runtime.atomic_file import write_text
from phirt_train.components import by_component
from phirt_train.data.sampling import Consumed
from phirt_train.loop import StageResult
from phirt_train.metrics import read_points
from phirt_train.plan import parameter_sizes, rounded
from phirt_train.plots import LOSS_NAME, SCHEDULE_NAME, draw_run
from phirt_train.recipe import Recipe
from phirt_train.stage import StageConfig
from phirt_train.stage_fields import missed
from phirt_train.stage_record import StageRecord, read_record

REPORT_NAME, REPORT_JSON = "report.md", "report.json"


@dataclasses.dataclass(frozen=True)
class _Part:
    """A stage or a step with what it reached; a step has no table of a stage, and no record."""

    result: StageResult
    stage: StageConfig | None
    record: StageRecord | None

    @property
    def gate(self) -> str:
        """Whether the gate was passed."""
        if self.stage is None or not self.stage.gate:
            return ""
        figures = {"loss": self.result.loss, **self.result.figures}
        phrases = missed(self.stage.gate, figures)
        return f"missed: {'; '.join(phrases)}" if phrases else "passed"

    @property
    def tokens(self) -> int:
        """Of all that it learnt from; 0 where that is not made of tokens."""
        if self.result.unit == "tokens":
            return self.result.units
        return sum(one.tokens for one in self.result.consumed.values())


def write_report(recipe: Recipe, run_dir: Path, results: Sequence[StageResult]) -> None:
    """Write both reports and the pictures of what is done so far."""
    stages = {stage.name: stage for stage in recipe.stages}
    parts = [_Part(result, stages.get(result.name), read_record(run_dir / result.name)) for result in results]
    draw_run({part.result.name: read_points(run_dir / part.result.name) for part in parts}, run_dir)
    sizes = by_component(parameter_sizes(recipe))
    write_text(run_dir / REPORT_JSON, json.dumps(_as_object(recipe, sizes, parts), indent=1) + "\n")
    pictures = [name for name in (LOSS_NAME, SCHEDULE_NAME) if (run_dir / name).is_file()]
    write_text(run_dir / REPORT_NAME, _as_markdown(recipe, sizes, parts, pictures))


def _as_object(recipe: Recipe, sizes: Mapping[str, int], parts: Sequence[_Part]) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "languages": list(recipe.languages),
        "parameters": dict(sizes),
        "stages": [
            {
                **dataclasses.asdict(part.result),
                "gate": part.gate,
                "record": None if part.record is None else dataclasses.asdict(part.record),
            }
            for part in parts
        ],
        "by_kind": {kind: dataclasses.asdict(total) for kind, total in _by_kind(parts).items()},
    }


def _by_kind(parts: Iterable[_Part]) -> dict[str, Consumed]:
    """What all stages have taken of each kind of source; what is unique is so within a stage."""
    totals: dict[str, Consumed] = {}
    for part in parts:
        for one in part.result.consumed.values():
            kind = one.kind or "other"
            old = totals.get(kind, Consumed(kind, 0, 0, 0, 0.0))
            totals[kind] = Consumed(
                kind,
                old.items + one.items,
                old.tokens + one.tokens,
                old.unique_tokens + one.unique_tokens,
                old.epochs + one.epochs,
            )
    return totals


def _as_markdown(
    recipe: Recipe, sizes: Mapping[str, int], parts: Sequence[_Part], pictures: Sequence[str]
) -> str:
    total = sum(sizes.values())
    lines = [f"# {recipe.name}", "", f"{rounded(total)} weights ({total:,}): {_counts(sizes)}."]
    if recipe.languages:
        lines.append(f"Languages: {', '.join(recipe.languages)}.")
    lines += ["", *_table(("stage", "gate", "what moved", "tokens", "time"), map(_row, parts))]
    lines += [""] if pictures else []
    lines += [f"![{name.partition('.')[0]}]({name})" for name in pictures]
    for part in parts:
        lines += ["", f"## {part.result.name}", "", *_details(part, total)]
    kinds = _by_kind(parts)
    if len(kinds) > 1:
        lines += ["", "## All stages, by kind of source", "", *_sources(kinds)]
    return "\n".join(lines) + "\n"


def _row(part: _Part) -> tuple[str, ...]:
    result, record = part.result, part.record
    moved = (
        "" if record is None else ", ".join(f"{name} {n} of {of}" for name, (n, of) in record.moved.items())
    )
    if record is not None and record.changed_frozen:
        moved += f"; CHANGED though frozen: {len(record.changed_frozen)} tensors"
    tokens = f"{result.units:,} {result.unit}"
    if part.tokens and result.unit != "tokens":
        tokens = f"{rounded(part.tokens)} ({tokens})"
    return (result.name, part.gate, moved, tokens, f"{result.seconds / 60:.1f} min")


def _details(part: _Part, total: int) -> list[str]:
    result, record = part.result, part.record
    figures = ", ".join(f"{name} {value:.4g}" for name, value in result.figures.items())
    lines = [f"- figures: {figures}"] if figures else []
    if record is None:
        return lines or ["- nothing was recorded"]
    trained = sum(record.trained.values())
    same = record.frozen_before == record.frozen_after
    lines += [
        f"- loss {result.loss:.4g} after {result.steps:,} steps on {record.device}",
        f"- trained {rounded(trained)}: {_counts(record.trained)}",
        f"- frozen {rounded(sum(record.frozen.values()))}: {_counts(record.frozen) or 'nothing'}; "
        + ("bit for bit as before" if same else f"CHANGED: {', '.join(record.changed_frozen[:8])}")
        + f" (sha256 {record.frozen_after[:16]})",
        f"- context {record.context:,} tokens, rope base {record.theta:,.0f}",
        f"- techniques: {', '.join(record.techniques)}",
    ]
    if part.tokens:
        lines.append(
            f"- {part.tokens:,} tokens: {part.tokens / total:.3g} per weight of the model, "
            f"{part.tokens / max(1, trained):.3g} per trained one"
        )
    if result.left_out:
        lines.append(
            f"- left out: {', '.join(f'{rows} of {name}' for name, rows in result.left_out.items())}"
        )
    if result.consumed:
        lines += ["", *_sources(result.consumed)]
    return lines


def _sources(sources: Mapping[str, Consumed]) -> list[str]:
    rows = (
        (name, one.kind, f"{one.items:,}", f"{one.tokens:,}", f"{one.unique_tokens:,}", f"{one.epochs:.2f}")
        for name, one in sources.items()
    )
    return _table(("source", "kind", "items", "tokens", "unique tokens", "epochs"), rows)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [columns, ("---",) * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _counts(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {rounded(count)}" for name, count in sizes.items())
