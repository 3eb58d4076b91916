"""The numbers that the reports name are those of the recipes in full, each written down here again: budgets,
rates, batches, contexts, shares, epochs. Nothing is trained.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from phirt_train.components import by_component
from phirt_train.plan import parameter_sizes, plan_table
from phirt_train.rate_fit import fit_rates, load_fit
from phirt_train.recipe import Recipe, load_recipe
from phirt_train.schedules import course_of
from phirt_train.stage import StageConfig

REPORTS = Path(__file__).resolve().parents[2] / "export/recipes/reports"


def _stages(recipe: Recipe) -> dict[str, Any]:
    return {stage.name: stage for stage in recipe.stages}


def _shares(stage: StageConfig, at: float) -> dict[str, float]:
    """Of each kind of source, at a position of the stage from 0 to 1."""
    found: dict[str, float] = defaultdict(float)
    for source in stage.data.documents.values():  # type: ignore[attr-defined]
        (begin, first), (end, last) = source.points[0], source.points[-1]
        found[source.kind] += first + (last - first) * (at - begin) / ((end - begin) or 1)
    return dict(found)


def test_phi_4_in_full() -> None:
    recipe = load_recipe(REPORTS / "phi-4.toml", "full")
    stages = _stages(recipe)
    first, second = stages["pretraining"], stages["midtraining"]
    assert (first.batch, first.data.row_tokens, first.tokens) == (5760, 4096, 10e12)
    schedule = first.schedule
    assert (schedule.kind, schedule.peak, schedule.weight_decay) == ("linear", 3e-4, 0.1)
    course = course_of(recipe.stages, "pretraining")
    rises = [course.rate(step) for step in (0, schedule.warmup_steps // 2 - 1, schedule.warmup_steps - 1)]
    assert rises == pytest.approx([3e-4 / schedule.warmup_steps, 1.5e-4, 3e-4])
    middle = course.rate((schedule.warmup_steps + first.steps) // 2)
    assert middle == pytest.approx(1.5e-4, rel=1e-3) and course.rate(first.steps - 1) < 1e-8
    rope = recipe.model_after("pretraining").decoder.rope
    assert (rope.theta, rope.context) == (1e4, 4096)
    rope = recipe.model_after("midtraining").decoder.rope
    assert (rope.theta, rope.context, rope.has_long_regime) == (250000.0, 16384, False)
    assert second.schedule.peak == pytest.approx(3e-5)
    assert (second.tokens, second.data.row_tokens) == (250e9, 16384)
    decoder = recipe.model.decoder
    assert not decoder.tied and decoder.rope.rotary_dim == decoder.head_dim


def test_the_rate_of_phi_4_is_fitted_to_short_runs_where_it_trains() -> None:
    fit = load_fit(REPORTS / "phi-4-rates.json")
    again = fit_rates(fit.trials)
    assert (again.coefficient, again.exponent) == pytest.approx((fit.coefficient, fit.exponent))
    recipe = load_recipe(REPORTS / "phi-4.toml", "small")
    first, second = _stages(recipe)["pretraining"], _stages(recipe)["midtraining"]
    tokens = first.steps * first.batch * first.data.row_tokens
    horizons = sorted({trial.tokens for trial in fit.trials})
    assert horizons[0] < tokens < horizons[-1]  # between them, not beyond
    assert first.schedule.peak == pytest.approx(0.4762634591 * tokens**-0.398611825, rel=1e-6)
    assert second.schedule.peak == pytest.approx(first.schedule.peak / 10)
    (row,) = (line for line in plan_table(recipe).splitlines() if line.startswith("| pretraining "))
    assert "| 0.00313 |" in row


def test_kinds_of_phi_4_have_the_reports_shares() -> None:
    stages = _stages(load_recipe(REPORTS / "phi-4.toml", "full"))
    first, second = stages["pretraining"], stages["midtraining"]
    whole = {"web": 0.15, "rewrites": 0.15, "synthetic": 0.4, "code": 0.2, "acquired": 0.1}
    assert _shares(first, 0.5) == pytest.approx(whole)  # straight lines: the mean over the stage
    synthetic = [_shares(first, at)["synthetic"] for at in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert synthetic == sorted(synthetic) and synthetic[0] < synthetic[-1]
    long = sum(share for kind, share in _shares(second, 0.5).items() if kind.startswith("long"))
    assert long == pytest.approx(0.3) and sum(_shares(second, 0.5).values()) == pytest.approx(1.0)
    documents = second.data.documents
    assert {documents[f"kinds/{name}.jsonl"].min_tokens for name in ("long", "recall")} == {8192}
    replayed = {kind: share / 0.7 for kind, share in _shares(second, 0.5).items() if "long" not in kind}
    assert replayed == pytest.approx(whole)


@pytest.mark.parametrize(
    ("scale", "tokens"), [("phi-3-mini", 3.3e12), ("phi-3-small", 4.8e12), ("phi-3-medium", 4.8e12)]
)
def test_phi_3_in_three_sizes(scale: str, tokens: float) -> None:
    recipe = load_recipe(REPORTS / "phi-3.toml", scale)
    stages = _stages(recipe)
    broad, refined = stages["broad"], stages["refined"]
    assert broad.tokens + refined.tokens == pytest.approx(tokens, rel=1e-4)
    assert "made/filtered/web.jsonl" in refined.data.documents
    assert _shares(broad, 0.5)["web"] > 0.5 and "synthetic" not in _shares(broad, 0.5)
    assert _shares(refined, 0.5)["synthetic"] == pytest.approx(0.3)
    assert recipe.model_after("refined").decoder.rope.context == 4096
    assert stages["long"].rope.context == 131072
    measured = {one.name: one.options for one in recipe.steps if one.kind == "measurement"}
    needles = [set(measured[name].needles) for name in ("base", "extended", "final")]  # type: ignore[attr-defined]
    assert all(one >= {4096, 131072} for one in needles)  # both windows
    assert set(stages["sft"].data.tasks) == {
        "math", "code", "reasoning", "conversation", "identity", "safety"
    }  # fmt: skip
    assert {one.kind for one in stages["dpo"].data.sources.values()} == {"chat", "reasoning", "safety"}


def test_phi_4_multimodal_in_full() -> None:
    recipe = load_recipe(REPORTS / "phi-4-multimodal.toml", "full")
    stages = _stages(recipe)
    assert (stages["pretraining"].tokens, stages["thoughts"].tokens) == (5e12, 60e9)
    assert "made/filtered/web.jsonl" in stages["pretraining"].data.documents
    reasoning = [_shares(stages["pretraining"], at)["reasoning"] for at in (0.0, 0.5, 1.0)]
    assert reasoning == sorted(reasoning) and reasoning[0] < reasoning[-1]
    assert stages["reasoning"].steps * stages["reasoning"].batch == pytest.approx(200e3, rel=0.03)
    assert stages["preferences"].steps * stages["preferences"].batch == pytest.approx(300e3, rel=0.03)
    crops = {name: getattr(stages[name].data, "max_crops", None) for name in stages if name[0] == "v"}
    assert crops["v1_projector"] == crops["v2_encoder"] == 16
    assert crops["v3_single_frame"] is None and recipe.model.vision.max_crops == 36  # type: ignore[union-attr]
    skills = {one.kind for one in stages["posttraining"].data.conversations.values()}
    assert skills > {"function calling", "summaries", "instruction following", "code completion"}
    assert recipe.model.decoder.vocab_size == 200064
    assert (recipe.model.decoder.num_heads, recipe.model.decoder.num_kv_heads) == (24, 8)
    parts = by_component(parameter_sizes(recipe))
    assert [round(parts[name] / 1e6, -1) for name in ("LoRA vision", "LoRA speech")] == [370, 460]
