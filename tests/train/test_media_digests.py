"""Pictures and recordings that data lines name count as the lines do: a run knows when one has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_train.data.records import media_named
from phirt_train.data_digests import DataDigests
from phirt_train.file_digests import FileDigests
from phirt_train.finetuning.finetune import FinetuneSettings, finetune
from phirt_train.loop import Interrupted, StageRun
from phirt_train.progress import Progress
from phirt_train.runner import run_recipe

STAGE = """
[[stage]]
name = "colours"
objective = "supervised_finetuning"
trains = ["model."]
steps = 4
batch = 2
schedule = { peak = 1e-3, warmup_steps = 1 }
data = { sources = { "talks.jsonl" = 1.0 } }

[[stage]]
name = "more"
objective = "supervised_finetuning"
starts_from = ["colours"]
trains = ["model."]
steps = 1
batch = 2
schedule = { peak = 1e-3 }
data = { sources = { "talks.jsonl" = 1.0 } }
"""
COLOURS = ["red", "blue", "green", "black"]


def paint(path: Path, colour: str) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path)


@pytest.fixture
def folder(tmp_path: Path, towers: str) -> Path:
    (tmp_path / "recipe.toml").write_text('name = "small"\n' + SMALL_MODEL + towers + STAGE)
    talks = []
    for colour in COLOURS:
        paint(tmp_path / f"pictures/{colour}.png", colour)
        turns = [
            {"role": "user", "content": "Colour?", "images": [f"pictures/{colour}.png"]},
            {"role": "assistant", "content": colour},
        ]
        talks.append({"messages": turns})
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return tmp_path


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages end after a step, as a signal ends them."""
    one_step = StageRun._one_step

    def stopping(run: StageRun) -> None:
        one_step(run)
        if run.step == step:
            run._stop = 2

    monkeypatch.setattr(StageRun, "_one_step", stopping)


def test_a_changed_picture_is_noticed_in_and_after_a_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was painted over between two starts went into the same stage unnoticed."""
    with monkeypatch.context() as patched:
        stopped_at(2, patched)
        with pytest.raises(Interrupted):
            run_recipe(folder, folder / "run")
    paint(folder / "pictures/blue.png", "white")
    with pytest.raises(ConfigError) as refused:
        run_recipe(folder, folder / "run")
    assert "state.safetensors belongs to another recipe" in str(refused.value)
    assert "\n" not in str(refused.value)
    paint(folder / "pictures/blue.png", "blue")  # another time, the same content
    run_recipe(folder, folder / "run", until="colours")
    (folder / "pictures/green.png").unlink()
    with pytest.raises(ConfigError, match="was trained with another recipe"):
        run_recipe(folder, folder / "run")


def test_a_changed_picture_ends_a_finetuning_in_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "a.png", "red")
    (tmp_path / "my.jsonl").write_text(json.dumps({"prompt": "?", "image": "a.png", "answer": "red"}) + "\n")
    given = (tmp_path / "my.jsonl", tmp_path / "mine", finished / "checkpoint")
    settings = FinetuneSettings(rank=2, epochs=4)
    with monkeypatch.context() as patched:
        stopped_at(2, patched)
        with pytest.raises(Interrupted):
            finetune(*given, settings)
    paint(tmp_path / "a.png", "blue")
    with pytest.raises(
        ConfigError, match=r"mine\.training holds an unfinished training on other rows or media"
    ):
        finetune(*given, settings)
    paint(tmp_path / "a.png", "red")
    assert finetune(*given, settings).steps == 4


def test_media_are_found_wherever_records_name_them(tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "?", "images": ["a.png", "b.png"], "audio": ["c.wav"]}]},
        {"prompt": [{"role": "user", "content": "?", "audio": ["c.wav", "d.wav"]}], "chosen": "x"},
        {"prompt": "?", "image": "e.png", "audio": "f.wav", "answer": "x"},
        {"image": "g.png", "label": "pear"},
        {"audio": "h.wav", "text": "i"},
        {"text": 'the words "image" and "audio"', "images": 3, "audio": [None, ["x"]]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"image": "torn.p\n[1]\n')
    names = media_named(path)
    assert names == ["a.png", "b.png", "c.wav", "d.wav", "e.png", "f.wav", "g.png", "h.wav"]


def test_media_are_read_once_and_again_where_size_or_time_change(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"image": "a.png", "text": "x"}\n{"image": "none.png", "text": "y"}\n'
    )
    (tmp_path / "texts.jsonl").write_text('{"text": "z"}\n')
    (tmp_path / "a.png").write_bytes(b"1")
    told: list[Progress] = []

    def digests() -> DataDigests:
        return DataDigests(FileDigests(tmp_path / "files.json"), tmp_path, tmp_path, report=told.append)

    first = digests()
    found = first.with_media("rows.jsonl")
    assert found not in (None, first.file("rows.jsonl"))
    assert first.with_media("texts.jsonl") == first.file("texts.jsonl")  # no media: as ever
    assert (told[0].step, told[0].steps, told[0].unit) == (0, 2, "files")
    first.known.save()
    before = (tmp_path / "a.png").stat()
    (tmp_path / "a.png").write_bytes(b"2")
    os.utime(tmp_path / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests().with_media("rows.jsonl") == found  # of the same size and time: not read again
    os.utime(tmp_path / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert digests().with_media("rows.jsonl") != found
    (tmp_path / "a.png").write_bytes(b"1")
    assert digests().with_media("rows.jsonl") == found
    (tmp_path / "none.png").write_bytes(b"")
    assert digests().with_media("rows.jsonl") != found


def test_what_was_prepared_counts_by_its_own_digest_and_what_it_names_outside_by_its_content(
    tmp_path: Path,
) -> None:
    prepared = tmp_path / "run/prepared"
    prepared.mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"1")
    (prepared / "b.png").write_bytes(b"2")
    (prepared / "own.jsonl").write_text('{"image": "b.png"}\n{"image": "../prepared/b.png"}\n')
    (prepared / "users.jsonl").write_text('{"image": "../../a.png"}\n')
    known = FileDigests(tmp_path / "files.json")
    data = DataDigests(known, prepared, tmp_path, prepared=True)
    assert data.file("own.jsonl") is None and data.with_media("own.jsonl") is None
    before = data.with_media("users.jsonl")
    (tmp_path / "a.png").write_bytes(b"12")
    assert None is not before != data.with_media("users.jsonl")
    assert data.with_media("made/step/rows.jsonl") is None
