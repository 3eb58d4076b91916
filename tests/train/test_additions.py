"""Adding a thing touches one place: a data source is a file of JSON lines, a training objective one module,
and a recipe's own code one file beside it.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_train import objectives
from phirt_train.runner import run_recipe

MODEL = (
    """
name = "small"
"""
    + SMALL_MODEL
    + """sources = ["sea.jsonl"]
"""
)
LANGUAGE = """
[[stage]]
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 2
batch = 2
schedule = { peak = 1e-3 }
data = { row_tokens = 16, documents = { "sea.jsonl" = 1.0 } }
"""
SEA = [{"text": f"The sea is wide, and wave {n} is long."} for n in range(9)]


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_a_data_source_is_a_file_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(MODEL + LANGUAGE)
    write_lines(tmp_path / "sea.jsonl", SEA)
    (one,) = run_recipe(tmp_path, tmp_path / "one")
    # Another source: a file, and its name with its share in the recipe.
    write_lines(tmp_path / "hills.jsonl", [{"text": "The hills are high and green, and so is the valley."}])
    text = LANGUAGE.replace('"sea.jsonl" = 1.0', '"sea.jsonl" = 0.5, "hills.jsonl" = 0.5')
    (tmp_path / "recipe.toml").write_text(MODEL + text)
    (two,) = run_recipe(tmp_path, tmp_path / "two")
    assert one.units == two.units == 64 and one.digest != two.digest


OBJECTIVE = '''
"""Pulls the token table towards zero: the shortest objective there is."""

import dataclasses

from torch import nn

from phirt_train.objective import Loss, ObjectiveKind


@dataclasses.dataclass(frozen=True)
class ShrinkData:
    """How strongly."""

    strength: float

    def check(self, model):
        """Every model has a token table."""

    def files(self):
        """Nothing is read."""
        return ()


class Shrink:
    unit = "tables"

    def __init__(self, model, stage, context):
        self.model, self.strength, self.head = model, stage.data.strength, nn.Module()

    def prepare(self, step, share):
        """There is nothing to read."""

    def loss(self, batch):
        return Loss(self.strength * self.model.embedding_weight().square().mean(), 1, 1)

    def validate(self):
        return {"table": self.model.embedding_weight().square().mean().item()}


KIND = ObjectiveKind(ShrinkData, Shrink)
'''
SHRINK = """
[[stage]]
name = "shrink"
objective = "shrink"
trains = ["model.embed_tokens."]
steps = 3
batch = 1
schedule = { peak = 1e-3, warmup_steps = 0 }
data = { strength = 2.0 }
"""


def test_a_training_objective_is_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "objectives"
    folder.mkdir()
    (folder / "shrink.py").write_text(OBJECTIVE)
    (tmp_path / "recipe.toml").write_text(MODEL + SHRINK)
    write_lines(tmp_path / "sea.jsonl", SEA)
    with pytest.raises(ConfigError, match="objective is 'shrink'; accepted: "):
        run_recipe(tmp_path, tmp_path / "run")
    # As if the module lay in phirt_train/objectives; nothing else is told of it.
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(folder)])
    (result,) = run_recipe(tmp_path, tmp_path / "run")
    assert (result.unit, result.units) == ("tables", 3) and result.figures["table"] < result.loss
    (tmp_path / "recipe.toml").write_text(MODEL + SHRINK.replace("strength = 2.0", "strength = '2'"))
    with pytest.raises(ConfigError, match="stage shrink: data: 'strength' is '2', expected a number"):
        run_recipe(tmp_path, tmp_path / "run2")


PREPARE = """
import dataclasses, json

from .words import WORDS


@dataclasses.dataclass(frozen=True)
class Options:
    times: int


def prepare(task, options):
    task.note("writing", 0, options.times)
    lines = [json.dumps({"text": f"{word} {task.seed}"}) for word in WORDS] * options.times
    (task.output / "sea.jsonl").write_text("\\n".join(lines))
"""
WITH_CODE = MODEL + '\n[prepare]\nmodule = "prepare.py"\noptions = { times = 3 }\n' + LANGUAGE


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(WITH_CODE)
    (tmp_path / "prepare.py").write_text(PREPARE)
    (tmp_path / "words.py").write_text('WORDS = ["wave", "tide", "shore"]\n')
    return tmp_path


def test_a_recipes_own_code_writes_its_data_once(recipe: Path) -> None:
    run_recipe(recipe, recipe / "run")
    written = (recipe / "run/prepared/sea.jsonl").read_text().splitlines()
    assert written == ['{"text": "wave 0"}', '{"text": "tide 0"}', '{"text": "shore 0"}'] * 3
    before = (recipe / "run/prepared/sea.jsonl").stat().st_mtime_ns
    run_recipe(recipe, recipe / "run")
    assert (recipe / "run/prepared/sea.jsonl").stat().st_mtime_ns == before
    assert not (recipe / "run/prepared.partial").exists()
    assert set(load_file(recipe / "run/checkpoint/model.safetensors")) > {"model.norm.weight"}


def test_a_run_of_other_code_or_options_is_not_mixed_with_it(recipe: Path) -> None:
    run_recipe(recipe, recipe / "run")
    (recipe / "recipe.toml").write_text(WITH_CODE.replace("times = 3", "times = 4"))
    with pytest.raises(ConfigError, match="prepared was written by another recipe, or other code of it"):
        run_recipe(recipe, recipe / "run")


@pytest.fixture
def borrowing(recipe: Path) -> Path:
    """A recipe whose code imports another folder's, which imports its own neighbour."""
    mine = recipe / "mine"
    mine.mkdir()
    (mine / "recipe.toml").write_text(WITH_CODE.replace('"prepare.py"', '"prepare.py"\nuses = ["../lent"]'))
    (mine / "prepare.py").write_text(PREPARE.replace("from .words", "from ..lent.more"))
    lent = recipe / "lent"
    lent.mkdir()
    (lent / "more.py").write_text('from .words import WORDS as OTHERS\nWORDS = [*OTHERS, "land"]\n')
    (recipe / "words.py").rename(lent / "words.py")
    return mine


def test_code_of_another_folder_is_imported_by_its_name(borrowing: Path) -> None:
    run_recipe(borrowing, borrowing / "run")
    written = (borrowing / "run/prepared/sea.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in written[:4]] == ["wave 0", "tide 0", "shore 0", "land 0"]
    (borrowing.parent / "lent/words.py").write_text('WORDS = ["wave"]\n')
    with pytest.raises(ConfigError, match="prepared was written by another recipe, or other code of it"):
        run_recipe(borrowing, borrowing / "run")


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        ('["../gone"]', "the recipe uses .*gone, which is no folder; correct 'uses'"),
        ('["../lent", "lent"]', "uses names two folders of one name"),
        ('["../lent/../.."]', "is '../lent/../..', expected a folder as Python names packages"),
        ('["/tmp"]', "expected a folder as Python names packages"),
        ('"../lent"', "'uses' is '../lent', expected a list"),
    ],
)
def test_folders_that_cannot_be_used_are_one_line(borrowing: Path, uses: str, message: str) -> None:
    path = borrowing / "recipe.toml"
    path.write_text(path.read_text().replace('["../lent"]', uses))
    with pytest.raises(ConfigError, match=message) as refused:
        run_recipe(borrowing, borrowing / "run")
    assert "\n" not in str(refused.value)


def test_a_recipe_that_names_no_code_runs_none(recipe: Path) -> None:
    (recipe / "prepare.py").write_text("raise AssertionError\n")
    (recipe / "recipe.toml").write_text(MODEL + LANGUAGE)
    write_lines(recipe / "sea.jsonl", SEA)
    run_recipe(recipe, recipe / "run")
    assert not (recipe / "run/prepared").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "names prepare.py, and .* holds no such file"),
        ("def f(:\n", "cannot be loaded: SyntaxError"),
        (
            "import no_such_module\n",
            "cannot be loaded: ModuleNotFoundError: No module named",
        ),
        ("x = 1\n", "has no Options; it needs a dataclass Options and a function prepare"),
        (PREPARE.replace("times: int", "often: int"), "options: 'times' is not known here, accepted: often"),
        (PREPARE.replace("options.times)", "1 / 0)"), "failed: ZeroDivisionError: division by zero"),
        (PREPARE.replace("sea.jsonl", "land.jsonl"), "stage text reads sea.jsonl, and .* holds no such file"),
    ],
)
def test_code_that_fails_is_one_line(tmp_path: Path, code: str | None, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(WITH_CODE)
    (tmp_path / "words.py").write_text('WORDS = ["wave"]\n')
    if code is not None:
        (tmp_path / "prepare.py").write_text(textwrap.dedent(code))
    with pytest.raises(ConfigError, match=message) as refused:
        run_recipe(tmp_path, tmp_path / "run")
    assert "\n" not in str(refused.value)
