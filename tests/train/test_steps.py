"""Steps between stages: a kind is one module; what a step makes is read by what comes later, is made once,
and is made again where what it depends on has changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_train import steps
from phirt_train.progress import Progress
from phirt_train.runner import run_recipe

KIND = '''
"""Says every text again, behind the numbers of a model."""

import dataclasses, json

from phirt_train.step import StepKind, StepOutcome


@dataclasses.dataclass(frozen=True)
class EchoOptions:
    source: str
    times: int = 1
    made: str = "again.jsonl"

    def check(self, model):
        """Every model has numbers."""

    def files(self):
        return (self.source,)


def echo(options, context):
    calls = context.work / "calls"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    (context.work / "seed").write_text(str(context.seed))
    size = 0
    if context.weights is not None:
        model = context.model().model()
        assert not model.training
        size = sum(parameter.numel() for parameter in model.parameters())
        assert (context.bundle() / "manifest.json").is_file()
    lines = context.path(options.source).read_text().splitlines() * options.times
    texts = [json.loads(line)["text"] for line in lines]
    out = "".join(json.dumps({"text": f"{size} {text}"}) + "\\n" for text in texts)
    (context.output / options.made).write_text(out)
    return StepOutcome(len(lines), {"weights": size})


KIND = StepKind(EchoOptions, echo, needs_model=NEEDS_MODEL)
'''
RECIPE = (
    """
name = "small"
"""
    + SMALL_MODEL
    + """
[[step]]
name = "first"
kind = "copy"
options = { source = "sea.jsonl", times = 2 }

[[stage]]
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 2
batch = 2
schedule = { peak = 1e-3 }
data = { row_tokens = 16, documents = { "made/first/again.jsonl" = 1.0 } }

[[step]]
name = "between"
kind = "echo"
after = "text"
options = { source = "made/first/again.jsonl" }

[[stage]]
name = "more"
objective = "language_modeling"
starts_from = ["text"]
trains = ["model."]
steps = 1
batch = 2
schedule = { peak = 1e-3 }
data = { row_tokens = 16, documents = { "made/between/again.jsonl" = 1.0 } }

[scale.double]
part.more = { batch = 5 }
step_scale = 2.0
options = { times = 5, unknown = 1 }
"""
)
SEA = "".join(json.dumps({"text": f"The sea is wide, and wave {n} is long."}) + "\n" for n in range(9))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if two modules lay in phirt_train/steps; nothing else is told of them."""
    folder = tmp_path / "steps"
    folder.mkdir()
    (folder / "echo.py").write_text(KIND.replace("NEEDS_MODEL", "True"))
    (folder / "copy.py").write_text(KIND.replace("NEEDS_MODEL", "False"))
    monkeypatch.setattr(steps, "__path__", [*steps.__path__, str(folder)])
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "sea.jsonl").write_text(SEA)
    return tmp_path


def calls(run: Path, step: str) -> int:
    return len((run / step / "calls").read_text())


def test_steps_run_between_stages_and_later_ones_read_what_they_made(recipe: Path) -> None:
    run = recipe / "run"
    results = run_recipe(recipe, run)
    assert [result.name for result in results] == ["first", "text", "between", "more"]
    first, _, between, _ = results
    assert (first.units, first.unit, first.figures) == (18, "records", {"weights": 0})
    assert between.units == 18 and between.figures["weights"] > 1000
    made = [json.loads(line)["text"] for line in (run / "made/between/again.jsonl").read_text().splitlines()]
    assert made[0] == f"{between.figures['weights']:.0f} 0 The sea is wide, and wave 0 is long."
    assert sorted(path.name for path in (run / "made").iterdir()) == ["between", "first"]
    assert "| between |  | 18 records |" in (run / "results.md").read_text()


def test_a_step_runs_once_and_again_after_what_it_depends_on(recipe: Path) -> None:
    run = recipe / "run"
    run_recipe(recipe, run)
    reports: list[Progress] = []
    run_recipe(recipe, run, report=reports.append)
    assert reports == [] and calls(run, "between") == 1
    (recipe / "recipe.toml").write_text(RECIPE.replace("times = 2", "times = 3"))
    with pytest.raises(ConfigError, match="first was trained with another recipe"):
        run_recipe(recipe, run)
    (recipe / "recipe.toml").write_text(RECIPE)
    (run / "between/result.json").unlink()
    (run / "more/result.json").unlink()
    run_recipe(recipe, run)
    assert calls(run, "between") == 2 and calls(run, "first") == 1


def test_a_step_that_was_cut_off_does_not_take_what_it_made_of_other_weights(recipe: Path) -> None:
    run = recipe / "run"
    run_recipe(recipe, run)
    (run / "between/result.json").unlink()
    bundle = (run / "between/bundle/manifest.json").read_bytes()
    shutil.rmtree(run / "text")
    shutil.rmtree(run / "more")
    (recipe / "recipe.toml").write_text(RECIPE.replace("peak = 1e-3", "peak = 1e-1", 1))
    run_recipe(recipe, run)
    assert calls(run, "between") == 1
    assert (run / "between/bundle/manifest.json").read_bytes() != bundle


def test_every_step_has_a_seed_of_its_own(recipe: Path) -> None:
    for run in (recipe / "run", recipe / "again"):
        run_recipe(recipe, run, until="between")
    seeds = [(recipe / place / "seed").read_text() for place in ("run/first", "run/between", "again/between")]
    assert seeds[0] != seeds[1] and seeds[1] == seeds[2]


def test_a_stage_depends_on_the_steps_that_it_reads(recipe: Path) -> None:
    before = {result.name: result.digest for result in run_recipe(recipe, recipe / "run")}
    (recipe / "recipe.toml").write_text(
        RECIPE.replace('source = "made/first/again.jsonl"', 'source = "sea.jsonl"')
    )
    after = {result.name: result.digest for result in run_recipe(recipe, recipe / "run2")}
    assert [name for name in before if before[name] != after[name]] == ["between", "more"]


def test_a_run_ends_after_the_step_that_until_names(recipe: Path) -> None:
    results = run_recipe(recipe, recipe / "run", until="between")
    assert [result.name for result in results] == ["first", "text", "between"]
    assert not (recipe / "run/checkpoint").exists()


def test_a_scale_changes_the_options_that_steps_have(recipe: Path) -> None:
    results = run_recipe(recipe, recipe / "run", scale="double")
    assert [(result.steps, result.units) for result in results[:2]] == [(0, 45), (4, 128)]
    assert results[-1].units == 2 * 5 * 16


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('kind = "echo"', 'kind = "shout"', "step between: kind is 'shout'; accepted: copy, cur"),
        ('after = "text"', 'after = "later"', "step between comes after later, which is no stage"),
        ('after = "text"\n', "", "step between: echo needs a model; name the stage that it comes 'after'"),
        ('name = "between"', 'name = "text"', "two stages or steps are called text"),
        ('name = "between"', 'name = "made"', "a step is called made, as a folder of every run is"),
        ("times = 2", "often = 2", "step first: options: 'often' is not known here, accepted: source"),
        ("times = 2", "times = '2'", "step first: options: 'times' is '2', expected a whole number"),
        ("[[step]]", "[step]", "write [[step]]"),
        (
            'documents = { "made/first/again.jsonl"',
            'documents = { "made/between/again.jsonl"',
            "text reads made/between/again.jsonl, and no step between comes before it",
        ),
        (
            'options = { source = "made/first/again.jsonl" }',
            'options = { source = "made/first/again.jsonl", made = "other.jsonl" }',
            "more reads made/between/again.jsonl, which step between did not make; it made: other.jsonl",
        ),
        ('"sea.jsonl"', '"land.jsonl"', "step first reads land.jsonl, and "),
    ],
)
def test_what_is_wrong_is_one_line(recipe: Path, before: str, after: str, message: str) -> None:
    assert before in RECIPE
    (recipe / "recipe.toml").write_text(RECIPE.replace(before, after, 1))
    with pytest.raises(ConfigError) as refused:
        run_recipe(recipe, recipe / "run")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_step_that_fails_leaves_nothing_that_counts_as_made(recipe: Path) -> None:
    (recipe / "sea.jsonl").write_text('{"text": 1}\n' + "no JSON\n")
    with pytest.raises(ValueError, match="Expecting value"):
        run_recipe(recipe, recipe / "run")
    assert not (recipe / "run/made/first").exists()
    (recipe / "sea.jsonl").write_text(SEA)
    assert [result.name for result in run_recipe(recipe, recipe / "run")][-1] == "more"
