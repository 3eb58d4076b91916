"""Curation as a step of a recipe: it is clean of the evaluation sets that it names, or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from phirt.errors import ConfigError
from phirt_train.curate.config import DuplicatesConfig, EvaluationConfig, SourceConfig
from phirt_train.curate.quality import QualityConfig
from phirt_train.progress import ignore
from phirt_train.step import StepContext
from phirt_train.steps.curation import CurationOptions, sift

ASKED = "how many red boats of the old harbour lie at the long pier this very morning"


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    pages = [{"text": f"Before it. {ASKED}. After it come {n} more."} for n in range(2)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    (tmp_path / "exam1.jsonl").write_text(json.dumps({"text": ASKED}) + "\n")
    (tmp_path / "out").mkdir()
    return StepContext(
        step="filtered", identity="", source=tmp_path, seed=1, path=lambda name: tmp_path / name,
        output=tmp_path / "out", work=tmp_path / "work", weights=None, device=torch.device("cpu"),
        report=ignore,
    )  # fmt: skip


def options(exam: str) -> CurationOptions:
    return CurationOptions(
        source=(SourceConfig("web", ("web.jsonl",), quality=QualityConfig(rules="none")),),
        evaluation=(EvaluationConfig("exam", (exam,)),),
        duplicates=DuplicatesConfig(near=None),
    )


def test_an_evaluation_set_may_be_a_pattern(context: StepContext) -> None:
    found = sift(options("exam*.jsonl"), context)
    assert found.figures["web runs of evaluation sets"] > 0
    assert "exam" in (context.output / "report.md").read_text()


def test_a_missing_evaluation_set_is_an_error(context: StepContext) -> None:
    with pytest.raises(ConfigError, match=r"evaluation set exam names exams\.jsonl, and .* holds no such"):
        sift(options("exams.jsonl"), context)
