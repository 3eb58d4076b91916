"""Short runs of a stage: losses fall, a rate that is too high shows, and a warm-up is tried at multiples."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_train.rate_fit import warmup_stability
from phirt_train.recipe import load_recipe
from phirt_train.stage_trials import StageTrials

RECIPE = (
    """
name = "small"
"""
    + SMALL_MODEL
    + """
[[stage]]
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 1000
batch = 4
schedule = { kind = "linear", peak = 1e-2, warmup_steps = 6 }
data = { row_tokens = 16, documents = { "sea.jsonl" = 1.0 }, held_out = { sea = "sea.jsonl" } }
"""
)
SEA = "".join(json.dumps({"text": f"The sea is wide, and wave {n} is long."}) + "\n" for n in range(9))


@pytest.fixture
def trials(tmp_path: Path) -> StageTrials:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "sea.jsonl").write_text(SEA)
    return StageTrials(load_recipe(tmp_path), "text", tmp_path / "run", tmp_path)


def test_a_trial_is_as_long_as_its_tokens_say_and_the_same_again(trials: StageTrials, tmp_path: Path) -> None:
    losses = trials.losses(1e-2, 40 * 4 * 16)
    assert len(losses) == 40 and losses[-1] < losses[0] - 1
    assert trials.losses(1e-2, 40 * 4 * 16) == losses
    assert trials.losses(1e-4, 40 * 4 * 16)[-1] > losses[-1]
    assert not (tmp_path / "run/text").exists()


def test_a_warm_up_is_tried_with_its_rate_held(trials: StageTrials) -> None:
    readings = trials.readings(1.0, 12)
    assert len(readings) == 12 and all(math.isfinite(one.grad_norm) for one in readings)
    report = warmup_stability(trials.readings, trials.warmup_steps, (1.0, 2.0))
    assert [run.multiple for run in report.runs] == [1.0, 2.0] and report.largest_stable is not None


def test_only_stages_of_the_recipe_are_tried(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    with pytest.raises(ConfigError, match="no stage 'later'; stages: text"):
        StageTrials(load_recipe(tmp_path), "later", tmp_path, tmp_path)
