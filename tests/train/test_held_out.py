"""What is measured is learnt by nobody: no text of a file that a recipe holds out stands in one that it
learns from, and what is held out is of every kind that there is.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phirt_train.data.archives import read_records
from phirt_train.preparation import PreparationTask, prepare_data
from phirt_train.progress import ignore
from phirt_train.recipe import Recipe, load_recipe
from phirt_train.step import step_of
from phirt_train.steps.measurement import MeasurementOptions

RECIPES = Path(__file__).resolve().parents[2] / "export/recipes"
NAMES = ("nano", "reports/phi-3", "reports/phi-4", "reports/phi-4-multimodal", "reports/kimi-vl")
LONG = 24  # letters: shorter texts ("Yes.") may stand anywhere


def _measured_of(data: Any) -> Iterator[str]:
    """Files that a stage's data name to measure with, those of its parts among them."""
    yield from getattr(data, "held_out", {}).values()
    yield from (written.file for written in getattr(data, "written", {}).values())
    yield from (probe.test for probe in getattr(data, "probes", {}).values())
    for part in getattr(data, "parts", {}).values():
        yield from _measured_of(part.read)


def files_of(recipe: Recipe) -> tuple[set[str], set[str]]:
    """Files that are learnt from, and those that are measured with."""
    measured = {name for stage in recipe.stages for name in _measured_of(stage.data)}
    every = {name for stage in recipe.stages for name in stage.data.files()}
    for step in recipe.steps:
        (measured if isinstance(step.options, MeasurementOptions) else every).update(step.options.files())
    return {name for name in every - measured if step_of(name) is None}, measured


def whole(record: dict[str, Any]) -> str:
    """All that a record says, whatever it is called."""
    return json.dumps({key: value for key, value in record.items() if key not in ("id", "origin")})


def asked(record: dict[str, Any]) -> Iterator[str]:
    """A document, or what is asked for in a conversation without media: that must not be learnt elsewhere."""
    if "text" in record and "audio" not in record and "file" not in record:
        yield record["text"]
    turns = record.get("messages") or record.get("prompt") or ()
    if not any(turn.get("images") or turn.get("audio") for turn in turns):
        yield from (turn["content"] for turn in turns if turn["role"] == "user")


def strings(value: Any) -> Iterator[str]:
    """All strings in a record."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)


@pytest.fixture(scope="module", params=NAMES)
def prepared(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe, and the folder of its prepared data."""
    path = RECIPES / (f"{request.param}.toml" if "/" in request.param else request.param)
    recipe = load_recipe(path, "tiny")
    assert recipe.prepare is not None
    output = tmp_path_factory.mktemp("prepared") / "data"
    prepare_data(recipe, recipe.prepare, data, output, ignore)
    return recipe, output


def test_nothing_that_is_held_out_is_learnt(prepared: tuple[Recipe, Path]) -> None:
    recipe, folder = prepared
    learnt, measured = files_of(recipe)
    assert learnt and measured
    records = {name: list(read_records(folder / name)) for name in learnt | measured}
    rows = {whole(record): name for name in learnt for record in records[name]}
    texts = {name: "\n".join(t for record in records[name] for t in strings(record)) for name in learnt}
    found = {}
    for name in measured:
        for record in records[name]:
            if (place := rows.get(whole(record))) is not None:
                found[name, place] = whole(record)
            for text in asked(record):
                if len(text) >= LONG:
                    found.update({(name, place): text for place, every in texts.items() if text in every})
    assert found == {}


def test_each_kind_of_chat_is_held_out_and_learnt(data: Path, tmp_path: Path) -> None:
    """Kinds that alternate were held out by place: always the same one of two."""
    chats, skills = load("chats"), load("posttraining")
    task = PreparationTask(data, tmp_path, 1, ignore)
    chats.Chats(each=300, characters=400, model="parrot").write(task)
    skills.PostTraining(each=200, library="json").write(task)
    for suffix in ("", ".val"):
        read = {
            name: [whole(record) for record in read_records(tmp_path / f"chats/{name}{suffix}.jsonl")]
            for name in ("reasoning", "identity", "following")
        }
        assert sum("Must it be" in one for one in read["reasoning"]) > 0
        assert read["identity"] and read["following"]
    asked_for = {kind: prompts(tmp_path / f"chats/identity{kind}.jsonl") for kind in ("", ".val")}
    assert not asked_for[""] & asked_for[".val"]


def test_a_twentieth_of_each_kind_is_held_out_by_what_is_asked() -> None:
    rows = [(kind, f"{kind} {number % 60}") for number in range(240) for kind in ("riddle", "sum")]
    rows += [("riddle", "RIDDLE 7"), ("lone", "one"), ("lone", "one")]
    learnt, held = load("held_out").part(rows, str)
    prompts_of = {kind: {one for one in held if one.startswith(kind)} for kind in ("riddle", "sum", "lone")}
    assert {kind: len({one.casefold() for one in some}) for kind, some in prompts_of.items()} == {
        "riddle": 3, "sum": 3, "lone": 0
    }  # fmt: skip
    assert not {one.casefold() for one in held} & {one.casefold() for one in learnt}
    assert len(held) + len(learnt) == len(rows) and len(held) in (24, 25)
    assert load("held_out").part([("lone", "one")], str) == (["one"], ["one"])


def load(name: str) -> Any:
    """A module of the reports' recipes."""
    return importlib.import_module(f"recipes.reports.{name}")


def prompts(path: Path) -> set[str]:
    return {record["messages"][0]["content"].casefold() for record in read_records(path)}
