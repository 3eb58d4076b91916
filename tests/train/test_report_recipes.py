"""The recipes of the reports: each runs from its first to its last stage at its smallest scale, in one call;
published sizes count what is published; wrong recipes end in one line.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_train.loop import StageResult
from phirt_train.recipe import load_recipe
from phirt_train.runner import run_recipe
from phirt_train.safety.probes import uses_what_is_measured
from phirt_train.steps import rope_search

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
    assert list(results) == [
        "filtered", "pretraining", "pretrained", "own-pages", "midtraining", "midtrained", "sft", "pivotal",
        "dpo", "final",
    ]  # fmt: skip
    for stage in ("pretraining", "midtraining", "sft", "dpo"):
        assert results[stage].steps > 0
    assert results["dpo"].loss == pytest.approx(0.6931, abs=1e-3)  # ln 2, where it starts from
    assert {"summaries rouge_l", "translations bleu"} <= results["sft"].figures.keys()
    assert results["midtrained"].figures.keys() == results["pretrained"].figures.keys()
    rope = Checkpoint(run / "checkpoint").config.decoder.rope
    assert (rope.theta, rope.context) == (250000.0, 1024)


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


def test_phi_4_goes_on_where_no_question_is_in_the_band(
    phi4: tuple[Path, dict[str, StageResult]], data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(phi4[0], copy)
    for name in ("pivotal", "dpo", "final"):
        (copy / name / "result.json").unlink()
    shutil.copytree(REPORTS.parent, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "recipes/reports/phi-4.toml"
    path.write_text(path.read_text().replace("least = 0.0\nmost = 1.0", "least = 1.0\nmost = 1.0"))
    results = {result.name: result for result in run_recipe(path, copy, data, scale="tiny")}
    assert results["pivotal"].figures["questions in band"] == 0
    assert not (copy / "made/pivotal/pairs.jsonl").exists() and results["dpo"].units > 0


@pytest.fixture(scope="module")
def phi3(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, StageResult]]:
    run = tmp_path_factory.mktemp("phi-3")
    results = run_recipe(REPORTS / "phi-3.toml", run, data, scale="tiny")
    return run, {result.name: result for result in results}


def test_phi_3_runs_from_two_phases_to_a_checked_model(phi3: tuple[Path, dict[str, StageResult]]) -> None:
    _, results = phi3
    assert list(results) == [
        "filtered", "broad", "refined", "base", "factors", "long", "extended", "sft", "attempts", "attack-1",
        "repair-1", "attack-2", "repair-2", "dpo", "checked", "final",
    ]  # fmt: skip
    for attack in ("attack-1", "attack-2", "checked"):
        figures = results[attack].figures
        assert {"refused of unsafe", "refused of look-alikes"} <= figures.keys()
    assert {"passages exact", "passages rouge_l"} <= results["sft"].figures.keys()
    assert "chats/passages.jsonl" in results["sft"].consumed
    assert results["extended"].figures.keys() == results["base"].figures.keys() >= {"perplexity at 256"}


def test_phi_3_takes_the_factors_that_its_search_finds(phi3: tuple[Path, dict[str, StageResult]]) -> None:
    run, results = phi3
    found = json.loads((run / "made/factors/rope.json").read_text())
    rope = Checkpoint(run / "checkpoint").config.decoder.rope
    assert list(rope.long_factor) == found["long_factor"] and len(set(found["long_factor"])) > 1
    assert (rope.original_context, rope.context) == (128, found["context"])
    assert set(rope.short_factor) == {1.0}
    figures = results["factors"].figures
    assert figures["by those found"] <= figures["by YaRN's factors"]


def test_every_stage_of_phi_3_changes_all_weights(phi3: tuple[Path, dict[str, StageResult]]) -> None:
    run, _ = phi3
    stages = ["broad", "refined", "long", "sft", "repair-1", "repair-2", "dpo"]
    for before, after in itertools.pairwise(stages):
        first, second = weights(run, before), weights(run, after)
        assert first.keys() == second.keys() > {"lm_head.weight"}
        assert [name for name in first if torch.equal(first[name], second[name])] == []


def test_repairs_learn_rows_that_are_never_measured(phi3: tuple[Path, dict[str, StageResult]]) -> None:
    run, _ = phi3
    for attack in ("attack-1", "attack-2"):
        rows = (run / f"made/{attack}/rows.jsonl").read_text().splitlines()
        prompts = [json.loads(row)["messages"][0]["content"] for row in rows]
        assert prompts and not any(map(uses_what_is_measured, prompts))


def test_an_interrupted_step_goes_on(
    phi3: tuple[Path, dict[str, StageResult]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = phi3
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for name in ("factors", "long"):
        (copy / name / "result.json").unlink()
    shutil.rmtree(copy / "made/factors")

    def never(*_: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(rope_search, "passage_fitness", lambda *_: never)
    results = run_recipe(REPORTS / "phi-3.toml", copy, data, scale="tiny", until="factors")
    assert results[-1].name == "factors"
    rope = (copy / "made/factors/rope.json").read_text()
    assert rope == (run / "made/factors/rope.json").read_text()


def test_budgets_keep_the_reports_ratio_at_every_scale() -> None:
    for scale in ("full", "small"):
        stages = {stage.name: stage for stage in load_recipe(REPORTS / "phi-4.toml", scale).stages}
        tokens = {
            name: stages[name].steps * stages[name].batch * stages[name].tokens_of_item
            for name in ("pretraining", "midtraining")
        }
        assert tokens["midtraining"] / tokens["pretraining"] == pytest.approx(
            250e9 / 10e12, rel=0.1
        )  # whole steps


@pytest.mark.parametrize(
    ("recipe", "scale", "billions"),
    [
        ("phi-4", "full", 14.7),
        ("phi-3", "phi-3-mini", 3.8),
        ("phi-3", "phi-3-small", 7.4),
        ("phi-3", "phi-3-medium", 14.0),
    ],
)
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
        (
            "math = 0.3\n",
            "maths = 0.3\n",
            "stage sft: data: tasks and the kinds of the sources differ in",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = (REPORTS / "phi-4.toml").read_text()
    assert before in text
    (tmp_path / "phi-4.toml").write_text(text.replace(before, after, 1))
    shutil.copy(REPORTS / "phi-4-rates.json", tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path / "phi-4.toml", "tiny" if "tiny" in before else None)
    assert message in str(refused.value) and "\n" not in str(refused.value)
