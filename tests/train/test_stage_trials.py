"""Short runs of a stage: losses fall, a rate that is too high shows, and a warm-up is tried at multiples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_train.mixture_search import search_shares
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


MIXED = RECIPE.replace(
    'documents = { "sea.jsonl" = 1.0 }',
    'documents = { "sea.jsonl" = { start = 0.2, end = 0.4 }, "hills.jsonl" = 0.7 }',
)
HILLS = "".join(json.dumps({"text": f"No hill {n} rises up by {n}{n} feet?"}) + "\n" for n in range(9))


def test_shares_are_tried_by_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(MIXED)
    (tmp_path / "sea.jsonl").write_text(SEA)
    (tmp_path / "hills.jsonl").write_text(HILLS)
    trials = StageTrials(load_recipe(tmp_path), "text", tmp_path / "run", tmp_path)
    # The mean of s / (s + 0.7) for s from 0.2 to 0.4.
    assert trials.shares["sea.jsonl"] == pytest.approx(1 - 0.7 * math.log(1.1 / 0.9) / 0.2, abs=1e-4)
    few, many = ({"sea.jsonl": share, "hills.jsonl": 1 - share} for share in (0.1, 0.9))
    loss = trials.held_out(many, 40 * 4 * 16)
    assert trials.held_out(few, 40 * 4 * 16) > loss + 0.1 and trials.held_out(many, 40 * 4 * 16) == loss
    assert not (tmp_path / "run/text").exists()
    (tmp_path / "recipe.toml").write_text(MIXED.replace(', held_out = { sea = "sea.jsonl" }', ""))
    bare = StageTrials(load_recipe(tmp_path), "text", tmp_path / "run", tmp_path)
    with pytest.raises(ConfigError, match="stage text has no documents whose shares could be tried, or no"):
        bare.held_out(many, 64)


def test_the_best_move_is_taken_until_none_is_better() -> None:
    """Two sources, best at 0.8 of the first: from a half by twice as much to two thirds, and on to 0.8."""
    found = search_shares(lambda shares: (shares["a"] - 0.8) ** 2, {"a": 3.0, "b": 3.0}, rounds=9)
    assert found.shares == {"a": 0.8, "b": 0.2} and found.loss == pytest.approx(0.0, abs=1e-9)
    assert [one.change for one in found.tried if one.is_taken] == ["a more", "a more"]
    assert len(found.tried) == 1 + 2 + 3 * 4  # the third round finds nothing
    a = (1.02 * 0.5 / 1.01, 0.98 * 0.5 / 0.99)
    losses = [(one - 0.8) ** 2 for one in (0.5, *a)]
    mean = sum(losses) / 3
    assert found.noise == pytest.approx(math.sqrt(sum((one - mean) ** 2 for one in losses) / 2), rel=1e-4)
    assert "| a more | a 0.667, b 0.333 | 0.0178 | yes |" in found.table()


def test_what_chance_explains_is_no_move() -> None:
    scatter = {0.5: 1.0, 0.50495: 1.1, 0.494949: 0.9}  # a deviation of 0.1

    def measure(shares: Mapping[str, float]) -> float:
        return scatter.get(shares["a"], 0.8)  # better by two of them, and less than two of a difference

    found = search_shares(measure, {"a": 1.0, "b": 1.0})
    assert found.shares == {"a": 0.5, "b": 0.5} and not any(one.is_taken for one in found.tried)
    clear = search_shares(
        lambda shares: measure(shares) - (shares["a"] > 0.6), {"a": 1.0, "b": 1.0}, rounds=1
    )
    assert clear.shares["a"] == pytest.approx(2 / 3, abs=1e-6)


def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    asked: list[float] = []

    def measure(shares: Mapping[str, float]) -> float:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(shares["a"])
        return (shares["a"] - 0.8) ** 2

    path = tmp_path / "shares.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search_shares(measure, {"a": 1.0, "b": 1.0}, path=path)
    known = list(asked)
    asked.clear()
    found = search_shares(measure, {"a": 1.0, "b": 1.0}, rounds=1, path=path)
    assert not {*known} & {*asked} and found.shares["a"] == pytest.approx(2 / 3, abs=1e-6)
    with pytest.raises(ConfigError, match="two sources at least"):
        search_shares(measure, {"a": 1.0})
    with pytest.raises(ConfigError, match="first runs of the search have no loss"):
        search_shares(lambda _: math.inf, {"a": 1.0, "b": 1.0})
