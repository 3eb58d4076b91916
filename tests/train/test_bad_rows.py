"""Rows that cannot be learnt from: a few are left out and counted, many end the stage, the first named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from phirt.errors import ConfigError
from phirt_train.data.rejects import Rejects
from phirt_train.objective import Share
from phirt_train.progress import Progress
from phirt_train.runner import run_recipe

TALKS = """
name = "talks"
objective = "supervised_finetuning"
trains = ["model."]
steps = 51
batch = 8
schedule = { peak = 1e-3 }
data = { sources = { "talks.jsonl" = 1.0 } }
"""
TEXT = """
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 3
batch = 2
schedule = { peak = 1e-3 }
data = { row_tokens = 16, documents = { "sea.jsonl" = 1.0 } }
"""


def talk(prompt: str, answer: str, **media: Any) -> str:
    turns = [{"role": "user", "content": prompt, **media}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns})


def write(path: Path, lines: list[str | bytes]) -> None:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")


BAD: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ('{"messages": [', "is no JSON"),
    "another record": ('{"text": "sea"}', "'messages' is missing"),
    "no UTF-8": (b'{"messages": "\xff"}', "it is no UTF-8"),
    "no answer": ('{"messages": [{"role": "user", "content": "Hi"}]}', "no message has the role assistant"),
    "a picture that is not there": (talk("?", "a", images=["none.png"]), "none.png is no file in"),
    "a picture that is none": (talk("?", "a", images=["text.png"]), "text.png"),
    "a recording that is none": (talk("?", "a", audio=["text.wav"]), "text.wav"),
    "longer than the context": (talk("?" * 600, "a"), "and the model's context has 512"),
}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("text.png", "text.wav"):
        (tmp_path / name).write_text("neither a picture nor a recording")
    Image.new("RGB", (60, 48), "red").save(tmp_path / "red.png")
    soundfile.write(tmp_path / "tone.wav", 0.1 * np.sin(np.arange(8000) / 9), 16000)
    whole = (tmp_path / "red.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_row_of_many_is_left_out(
    workshop: Callable[..., Any], media: Path, towers: str, kind: str
) -> None:
    line, message = BAD[kind]
    good = [talk("Colour?", "red", images=["red.png"]), talk("Tone?", "low", audio=["tone.wav"])] * 55
    write(media / "talks.jsonl", [*good[:70], line, *good[70:]])
    for _ in range(2):  # a second start reads what the first has kept
        objective = workshop(TALKS, towers)
        assert len(objective.sources[0]) == 110
        notice = objective.context.rejects.notice()
        assert notice.startswith("left out: 1 of 111 rows of talks.jsonl (") and message in notice
    write(media / "talks.jsonl", [*good[:70], line, line, *good[70:]])
    with pytest.raises(ConfigError, match=r"and 1 more of 112 rows of talks\.jsonl") as refused:
        workshop(TALKS, towers)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_picture_that_breaks_off_is_found_when_it_is_read(
    workshop: Callable[..., Any], media: Path, towers: str
) -> None:
    """Its header is whole. The next conversation is taken in its place, in any part of a step."""
    good = [talk("Colour?", "red", images=["red.png"])] * 200
    write(media / "talks.jsonl", [*good, talk("Half?", "half", images=["half.png"])])
    objective = workshop(TALKS, towers)
    assert len(objective.sources[0]) == 201
    sizes = []
    for step in range(51):
        groups = [group for n in range(2) for group in objective.prepare(step, Share(n, 2))]
        sizes.append(sum(len(group.picks) for group in groups))
        for group in groups:
            objective._rows.note_rejected(objective.sources, group)
            assert 200 not in [pick.item for pick in group.picks]
    assert set(sizes) == {8}
    assert "left out: 1 of 201 rows of talks.jsonl" in objective.context.rejects.notice()


def test_a_file_of_bad_pictures_alone_ends_in_one_line(
    workshop: Callable[..., Any], media: Path, towers: str
) -> None:
    write(media / "talks.jsonl", [talk("Half?", "half", images=["half.png"])] * 20)
    objective = workshop(TALKS, towers)
    with pytest.raises(ConfigError, match="and so it is with the 15 behind it; correct the media"):
        objective.prepare(0, Share())


def test_what_a_stage_leaves_out_is_in_its_result(tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "export/recipes/parrot/recipe.toml"
    head = recipe.read_text().split("[[stage]]")[0]
    (tmp_path / "recipe.toml").write_text(head + "[[stage]]" + TEXT)
    good = [json.dumps({"text": f"The sea is wide, and wave {n} is long."}) for n in range(150)]
    write(tmp_path / "sea.jsonl", [*good, "{"])
    reports: list[Progress] = []
    (result,) = run_recipe(tmp_path, tmp_path / "run", report=reports.append)
    assert result.left_out == {"sea.jsonl": 1}
    assert any("left out: 1 of 151 rows of sea.jsonl" in report.activity for report in reports)
    assert result.consumed["sea.jsonl"].tokens == 3 * 2 * 16
    (again,) = run_recipe(tmp_path, tmp_path / "run")
    assert again == result
    write(tmp_path / "sea.jsonl", [*good, "{", "[]", "{"])
    with pytest.raises(ConfigError, match=r"sea\.jsonl line 151 is no JSON: .*and 2 more of 153 rows"):
        run_recipe(tmp_path, tmp_path / "other")


@pytest.mark.parametrize(
    ("rows", "bad", "passes"), [(100, 1, True), (99, 1, False), (1000, 10, True), (1, 1, False)]
)
def test_at_most_one_in_a_hundred(rows: int, bad: int, passes: bool) -> None:
    rejects = Rejects()
    rejects.add("a", "a line 1: wrong", bad)
    if passes:
        rejects.check("a", rows)
    else:
        with pytest.raises(ConfigError, match="a line 1: wrong"):
            rejects.check("a", rows)
