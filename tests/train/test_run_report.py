"""What a run says of itself: metrics of every step, the report, pictures, and what stayed bit for bit."""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_recipe import SMALL_MODEL

from phirt_train import metrics
from phirt_train.components import by_component
from phirt_train.loop import Interrupted, StageRun
from phirt_train.metrics import Metrics, read_points
from phirt_train.progress import StepRecord
from phirt_train.runner import run_recipe
from phirt_train.stage_record import read_record, tensor_digests

RECIPE = (
    """
name = "small"
languages = ["en", "fr"]
"""
    + SMALL_MODEL
    + """
[[stage]]
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 12
batch = 2
schedule = { peak = 1e-3, warmup_steps = 3 }
data = { row_tokens = 16, documents = { "sea.jsonl" = { share = 1.0, kind = "web" } } }
gate = { loss = { most = 10.0 } }

[[stage]]
name = "layers"
objective = "language_modeling"
starts_from = ["text"]
trains = ["model.layers."]
steps = 6
batch = 2
schedule = { peak = 1e-3, warmup_steps = 0, muon = true }
ema = 0.9
rope = { theta = 5e4 }
data = { row_tokens = 16, documents = { "sea.jsonl" = { share = 1.0, kind = "synthetic" } } }
"""
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    lines = [json.dumps({"text": f"The sea is wide, and wave {n} is long."}) for n in range(9)]
    (tmp_path / "sea.jsonl").write_text("\n".join(lines))
    return tmp_path


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_report_tells_what_moved_and_what_did_not(recipe: Path) -> None:
    run_recipe(recipe, recipe / "run")
    report = (recipe / "run/report.md").read_text()
    assert "Languages: en, fr." in report
    assert "| text | passed | decoder 8 of 8 | 384 tokens |" in report
    assert "| layers |  | decoder 6 of 6 | 192 tokens |" in report
    assert "bit for bit as before" in report and "CHANGED" not in report
    assert (
        "techniques: Muon, cosine schedule, averaged weights (EMA), packed rows, rotary embedding" in report
    )
    assert "context 64 tokens, rope base 50,000" in report
    record = read_record(recipe / "run/layers")
    assert record is not None and record.frozen_before == record.frozen_after
    assert record.changed_frozen == () and set(record.frozen) == {"decoder"}
    assert record.frozen["decoder"] == 300 * 32 + 32  # the table and the last norm
    document = json.loads((recipe / "run/report.json").read_text())
    assert [stage["name"] for stage in document["stages"]] == ["text", "layers"]
    assert set(document["by_kind"]) == {"web", "synthetic"}
    assert document["parameters"]["decoder"] == 9600 + 3 * 32 + 2048 + 1024 + 4096 + 2048


def test_pictures_and_events_are_of_every_stage(recipe: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_recipe(recipe, recipe / "run")
    for name in ("loss.png", "schedule.png"):
        assert Image.open(recipe / "run" / name).size[0] > 500
    read = events.EventAccumulator(str(recipe / "run/tensorboard/text"))
    read.Reload()
    rates = [event.value for event in read.Scalars("rate")]
    assert [event.step for event in read.Scalars("loss")] == list(range(1, 13))
    assert rates == pytest.approx([step["rate"] for step in steps_of(recipe / "run/text")])


def test_no_step_stands_twice_where_a_run_was_stopped(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_recipe(recipe, recipe / "whole")
    one_step, left = StageRun._one_step, 0

    def stopped(self: StageRun) -> None:
        nonlocal left
        one_step(self)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StageRun, "_one_step", stopped)
    while not (recipe / "pieces/checkpoint").is_dir():
        left = 5
        with contextlib.suppress(Interrupted):
            run_recipe(recipe, recipe / "pieces")
    for stage in ("text", "layers"):
        whole, pieces = (steps_of(recipe / run / stage) for run in ("whole", "pieces"))
        assert [step["step"] for step in pieces] == list(range(1, len(whole) + 1))
        assert [step["loss"] for step in pieces] == [step["loss"] for step in whole]
        # Of the weights that the stage began with, not of those that it went on from.
        one, two = (read_record(recipe / run / stage) for run in ("whole", "pieces"))
        assert one == two


def test_what_was_written_after_the_state_is_written_anew(tmp_path: Path) -> None:
    def record(step: int) -> StepRecord:
        return StepRecord(step, float(step), 1.0, 0.1, 2 * step, 0.5 * step)

    with Metrics(tmp_path, tmp_path / "events", 0) as first:
        for step in range(1, 9):
            first.add(record(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # killed here
    with Metrics(tmp_path, tmp_path / "events", 5) as second:
        second.add(record(6))
    assert [point.step for point in read_points(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert steps_of(tmp_path)[2]["units_per_second"] == 4.0


def test_without_its_packages_a_run_says_so_once(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    imported = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib" or name == "torch.utils.tensorboard":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    monkeypatch.setattr(metrics, "_told", set())
    with caplog.at_level(logging.WARNING, "phirt.train"):
        run_recipe(recipe, recipe / "run")
    assert sorted(record.getMessage().split(" is not")[0] for record in caplog.records) == [
        "matplotlib", "tensorboard"
    ]  # fmt: skip
    assert (recipe / "run/report.md").is_file() and not (recipe / "run/loss.png").exists()


def test_a_digest_tells_every_bit() -> None:
    model = torch.nn.Linear(3, 2)
    before = tensor_digests(model)
    with torch.no_grad():
        model.bias[1] = torch.nextafter(model.bias[1], torch.tensor(9.0))
    after = tensor_digests(model)
    assert before["weight"] == after["weight"] and before["bias"] != after["bias"]


def test_components_are_told_by_names(finished: Path) -> None:
    names = {
        "model.layers.0.mlp.down_proj.base_layer.weight": "decoder",
        "model.layers.0.mlp.down_proj.lora_A.speech.weight": "LoRA speech",
        "model.embed_tokens_extend.image_embed.img_processor.encoder.x": "vision encoder",
        "model.embed_tokens_extend.image_embed.glb_GN": "vision projector",
        "model.embed_tokens_extend.audio_embed.audio_projection.speech.0.weight": "audio projector",
        "model.embed_tokens_extend.audio_embed.encoder.x": "audio encoder",
        "head.x": "head",
    }
    for name, component in names.items():
        assert by_component({name: 7}) == {component: 7}
    report = (finished / "report.md").read_text()
    assert "| vision |" in report and "LoRA vision 16 of 16" in report and "CHANGED" not in report
