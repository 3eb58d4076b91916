"""Pages that a model writes: it goes on with beginnings as with texts that it has learnt, what was cut ends
with a whole sentence, what the review drops is listed, and a stage learns the rest.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_recipe import SMALL_MODEL

import phirt
from phirt.errors import ConfigError
from phirt_train.data.records import TrainingMessage
from phirt_train.recipe import load_recipe
from phirt_train.rollouts.continuation import ContinuationSampler, whole_sentences
from phirt_train.rollouts.sampler import Request, Sample
from phirt_train.runner import run_recipe
from phirt_train.steps.written_pages import beginning
from phirt_train.synthetic.review import strange_words, words_of

SEA = "The sea is wide and cold. A wave is long."
RECIPE = (
    'name = "small"\n'
    + SMALL_MODEL
    + """
sources = ["sea.jsonl"]

[[stage]]
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 150
batch = 4
schedule = { peak = 1e-2, warmup_steps = 4 }
data = { row_tokens = 32, documents = { "sea.jsonl" = 1.0 } }

[[step]]
name = "own"
kind = "written_pages"
after = "text"
[step.options]
beginnings = "begun.jsonl"
words = 3
samples = 2
temperature = 0.0
max_new_tokens = 40
least_words = 4
least_bits = 0.0
most_strange = 0.7

[[stage]]
name = "more"
objective = "language_modeling"
starts_from = ["text"]
trains = ["model."]
steps = 3
batch = 4
schedule = { peak = 1e-3, warmup_steps = 1 }
[stage.data]
row_tokens = 32
optional = ["made/own/pages.jsonl"]
documents = { "sea.jsonl" = 0.5, "made/own/pages.jsonl" = 0.5 }
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "sea.jsonl").write_text((json.dumps({"text": SEA}) + "\n") * 40)
    begun = ["The sea is there, we see it.", "The sea is high.", "A long way."]
    (folder / "begun.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in begun))
    run_recipe(folder, folder / "run", folder)
    return folder


def test_a_page_is_its_beginning_with_what_the_model_goes_on_with(run: Path) -> None:
    pages = [json.loads(line)["text"] for line in (run / "run/made/own/pages.jsonl").read_text().splitlines()]
    assert SEA in pages[0] and pages[0].startswith("The sea is")  # learnt by heart, and not of its own source
    dropped = [json.loads(line) for line in (run / "run/made/own/dropped.jsonl").read_text().splitlines()]
    assert "seen before" in {one["reason"] for one in dropped}  # both samples are greedy
    result = json.loads((run / "run/own/result.json").read_text())
    assert result["unit"] == "pages" and result["units"] == len(pages)
    assert result["figures"]["pages kept"] == pytest.approx(len(pages) / (2 * 2))  # two different beginnings


def test_the_next_stage_learns_them(run: Path) -> None:
    consumed = json.loads((run / "run/more/result.json").read_text())["consumed"]
    assert {name for name, one in consumed.items() if one["items"]} == {"sea.jsonl", "made/own/pages.jsonl"}


def test_a_stage_goes_without_pages_where_none_are_kept(run: Path, tmp_path: Path) -> None:
    for name in ("sea.jsonl", "begun.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    strict = RECIPE.replace("least_bits = 0.0", "least_bits = 90.0\nmost_bits = 91.0").replace("150", "5")
    (tmp_path / "recipe.toml").write_text(strict)
    results = run_recipe(tmp_path, tmp_path / "run", tmp_path)
    assert results[1].figures["pages kept"] == 0 and set(results[2].consumed) == {"sea.jsonl"}


def test_other_pages_have_the_next_stage_trained_again(run: Path, tmp_path: Path) -> None:
    """A file may be optional, and what was learnt from it is still a function of it."""
    folder = tmp_path / "again"
    shutil.copytree(run, folder)
    before = json.loads((run / "run/more/result.json").read_text())["digest"]
    changed = RECIPE.replace("least_words = 4", "least_words = 5")
    (folder / "recipe.toml").write_text(changed)
    for name in ("own", "made"):
        shutil.rmtree(folder / "run" / name)
    with pytest.raises(ConfigError, match="more"):
        run_recipe(folder, folder / "run", folder)
    shutil.rmtree(folder / "run/more")
    assert run_recipe(folder, folder / "run", folder)[-1].digest != before


def test_words_that_no_text_has_are_strange() -> None:
    review = strange_words(words_of(["The sea, the SHIP.", "a 5 sail"]), 0.25)
    assert review("the Sea a wave 9") is None  # one of four
    assert review("the sea wave") == "strange words" and review("5 6") is None


def test_a_continuation_is_of_its_seed_alone(run: Path) -> None:
    config = phirt.GenerationConfig(max_new_tokens=12, temperature=1.5)
    with phirt.load(run / "run/own/bundle") as model:
        sampler = ContinuationSampler(model, config)
        request = Request((TrainingMessage("user", "The sea"),))
        first, second, again = sampler.sample(request, [1, 2, 1])
        assert first == again != second
        assert sampler.sample(Request((TrainingMessage("user", "sea " * 99),)), [1]) == [Sample("", True)]


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        ("It is so. And th", Sample("It is so.")),
        ('He said: "Go!" And', Sample('He said: "Go!"')),
        ("It is 3.5 metres", Sample("It is 3.5 metres", is_cut=True)),
        ("It ends here.", Sample("It ends here.", is_cut=True)),  # or with a digit that is not written yet
        ("One. Two.", Sample("One.")),
        ("", Sample("", is_cut=True)),
    ],
)
def test_what_is_cut_ends_with_a_whole_sentence(text: str, sample: Sample) -> None:
    assert whole_sentences(text) == sample


@pytest.mark.parametrize(
    ("text", "words", "begun"),
    [(" a  b\n c d", 3, " a  b\n c"), ("a b", 5, "a b"), ("", 2, ""), ("ab", 1, "ab")],
)
def test_a_beginning_is_as_it_stands_there(text: str, words: int, begun: str) -> None:
    assert beginning(text, words) == begun


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "max_new_tokens = 40",
            "max_new_tokens = 64",
            "max_new_tokens is 64, and the model's context has 64",
        ),
        ("least_words = 4", "least_words = 4000", "least_words is 4000, above most_words, 2000"),
        (
            'optional = ["made/own',
            'optional = ["made/other',
            "optional names made/other/pages.jsonl; accepted",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in RECIPE
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(before, after))
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
