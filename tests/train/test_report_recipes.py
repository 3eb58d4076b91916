"""The recipes of the reports: each runs from its first to its last stage at its smallest scale, in one call;
published sizes count what is published; wrong recipes end in one line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_train.loop import StageResult
from phirt_train.recipe import load_recipe
from phirt_train.runner import run_recipe

REPORTS = Path(__file__).resolve().parents[2] / "export/recipes/reports"


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model.safetensors")


@pytest.fixture(scope="module")
def phi4(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, StageResult]]:
    run = tmp_path_factory.mktemp("phi-4")
    results = run_recipe(REPORTS / "phi-4.toml", run, data, scale="tiny")
    return run, {result.name: result for result in results}


def test_phi_4_runs_from_pretraining_to_preferences(phi4: tuple[Path, dict[str, StageResult]]) -> None:
    run, results = phi4
    stages = ["pretraining", "pretrained", "midtraining", "midtrained", "sft", "pivotal", "dpo", "final"]
    assert [name for name in results if name in stages] == stages
    for stage in ("pretraining", "midtraining", "sft", "dpo"):
        assert results[stage].steps > 0
    assert results["dpo"].loss == pytest.approx(0.6931, abs=1e-3)  # ln 2, where it starts from
    assert results["midtrained"].figures.keys() == results["pretrained"].figures.keys()
    rope = Checkpoint(run / "checkpoint").config.decoder.rope
    assert (rope.theta, rope.context) == (250000.0, 256)


def test_every_stage_of_phi_4_changes_all_weights(phi4: tuple[Path, dict[str, StageResult]]) -> None:
    run, _ = phi4
    for before, after in (("pretraining", "midtraining"), ("midtraining", "sft"), ("sft", "dpo")):
        first, second = weights(run, before), weights(run, after)
        assert first.keys() == second.keys() > {"lm_head.weight"}
        assert [name for name in first if torch.equal(first[name], second[name])] == []


def test_pairs_of_rollouts_are_what_phi_4_prefers_by(phi4: tuple[Path, dict[str, StageResult]]) -> None:
    run, results = phi4
    pairs = [json.loads(line) for line in (run / "made/pivotal/pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == results["pivotal"].figures["pairs"] > 0
    assert all("####" in pair["chosen"] and pair["chosen"] != pair["rejected"] for pair in pairs)


def test_budgets_keep_the_reports_ratio_at_every_scale() -> None:
    for scale in ("full", None):
        stages = {stage.name: stage for stage in load_recipe(REPORTS / "phi-4.toml", scale).stages}
        tokens = {
            name: stages[name].steps * stages[name].batch * stages[name].tokens_of_item
            for name in ("pretraining", "midtraining")
        }
        assert tokens["midtraining"] / tokens["pretraining"] == pytest.approx(250e9 / 10e12, rel=1e-3)


@pytest.mark.parametrize(("recipe", "scale", "billions"), [("phi-4", "full", 14.7)])
def test_published_sizes_count_what_is_published(recipe: str, scale: str, billions: float) -> None:
    shapes = expected_shapes(load_recipe(REPORTS / f"{recipe}.toml", scale).model)
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert round(count / 1e9, 1) == billions


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("theta = 250000.0", "theta = -1.0", "stage midtraining: rope: 'theta' is -1.0, expected a number"),
        ("samples = 16", "samples = 0", "step pivotal: options: 'samples' is 0, expected a whole number"),
        ("least = 0.2", "least = 0.9", "the band is 0.9 to 0.8, accepted: two shares"),
        ('tasks = ["arc_easy"', 'tasks = ["arc_hard"', "arc_hard"),
        ("needles = [1024", "needles = [1", "step pretrained: options: 'needles'[0] is 1, expected a whole"),
        (
            "[scale.tiny.part.midtraining]",
            "[scale.tiny.part.midtrain]",
            "changes part 'midtrain'",
        ),
        ("math = 0.25", "maths = 0.25", "stage sft: data: tasks and the kinds of the sources differ in math"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = (REPORTS / "phi-4.toml").read_text()
    assert before in text
    (tmp_path / "phi-4.toml").write_text(text.replace(before, after, 1))
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path / "phi-4.toml", "tiny" if "tiny" in before else None)
    assert message in str(refused.value) and "\n" not in str(refused.value)
