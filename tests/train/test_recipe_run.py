"""The nano recipe at its tiny scale: runs whole, and an interrupted run ends with the weights of an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

import phirt
from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_export.reference import load_config
from phirt_train.loop import Interrupted, StageRun
from phirt_train.progress import Progress
from phirt_train.runner import run_recipe

RECIPE = Path(__file__).resolve().parents[2] / "export/recipes/nano"


def test_a_run_ends_with_a_checkpoint_that_export_accepts(finished: Path) -> None:
    checkpoint = Checkpoint(finished / "checkpoint")
    config = load_config(finished / "checkpoint")
    assert checkpoint.shape("model.embed_tokens.weight") == (600, 64)
    tokenizer = Tokenizer.from_file(str(finished / "checkpoint/tokenizer.json"))
    assert tokenizer.token_to_id("<|endoftext10|>") == config.tokens.image
    assert tokenizer.token_to_id("<|endoftext11|>") == config.tokens.audio


def test_the_checkpoint_answers_through_the_runtime(finished: Path, tmp_path: Path) -> None:
    bundle = export_bundle(finished / "checkpoint", tmp_path / "bundle", block_size=32, bits=4, method="rtn")
    model = phirt.load(bundle, verify=True)
    config = phirt.GenerationConfig(max_new_tokens=4)
    picture = Image.new("RGB", (50, 40), "red")
    result = model.chat().send("What is this?", images=[picture], config=config).result
    assert result.adapter == "vision"
    assert result.usage.image_tokens == 2 * 2 + 2 + 1 + 4 + 2
    assert len(result.token_ids) <= 4


def test_the_table_names_every_stage_with_its_held_out_figures(finished: Path) -> None:
    table = (finished / "results.md").read_text()
    for stage in ("vision_encoder", "text", "instructions", "vision", "speech", "joint"):
        assert f"| {stage} |" in table
    assert "bits per byte" in table
    assert "digits of a new speaker" in table


def test_stages_train_what_they_name_and_leave_the_rest(finished: Path) -> None:
    text, vision = (load_file(finished / name / "model.safetensors") for name in ("instructions", "vision"))
    lora = [name for name in vision if "lora_B.vision" in name]
    assert lora and all(vision[name].abs().sum() > 0 for name in lora)
    assert not any("lora" in name and "speech" in name for name in vision)
    for name, tensor in text.items():
        assert torch.equal(tensor, vision[name]), name


def test_quantization_aware_stage_ends_on_the_int4_grid(finished: Path) -> None:
    weights = load_file(finished / "instructions/model.safetensors")
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.base_layer.weight"):
        blocks = weights[name].unflatten(-1, (-1, 32))
        scale = blocks.abs().amax(-1, keepdim=True) / 8
        codes = blocks / scale.clamp(min=1e-12)
        assert torch.allclose(codes, codes.round(), atol=1e-3), name


def test_an_interrupted_run_ends_with_the_same_weights(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    one_step = StageRun._one_step
    left = 0

    def interrupted_step(self: StageRun) -> None:
        nonlocal left
        one_step(self)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StageRun, "_one_step", interrupted_step)
    starts = 0
    while not (tmp_path / "checkpoint").is_dir():
        starts += 1
        left = rng.randint(1, 8)
        with contextlib.suppress(Interrupted):
            run_recipe(RECIPE, tmp_path, data, scale="tiny")
    assert starts > 3
    whole = load_file(finished / "checkpoint/model.safetensors")
    pieces = load_file(tmp_path / "checkpoint/model.safetensors")
    assert whole.keys() == pieces.keys()
    different = [name for name, tensor in whole.items() if not torch.equal(tensor, pieces[name])]
    assert different == []


def test_a_later_call_does_nothing_twice(finished: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    reports: list[Progress] = []
    results = run_recipe(RECIPE, copy, data, scale="tiny", report=reports.append)
    assert reports == []
    saved = json.loads((copy / "text/result.json").read_text())
    assert [r.units for r in results if r.name == "text"] == [saved["units"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('name = "nano"', "'name' is missing, expected a name of letters"),
        ('objective = "language_modeling"', "stage text: 'objective' is missing, expected a string"),
        ('name = "text"', "a stage: 'name' is missing"),
        ("hidden_size = 256", "model: decoder: 'hidden_size' is missing, expected a whole number"),
    ],
)
def test_a_recipe_with_a_hole_is_refused_by_name(
    tmp_path: Path, change: str, message: str, data: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((RECIPE / "recipe.toml").read_text().replace(change, "", 1))
    with pytest.raises(ConfigError, match=message):
        run_recipe(recipe, tmp_path / "run", data)


def test_wrong_names_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="no scale 'huge'; it has: base, tiny"):
        run_recipe(RECIPE, tmp_path, data, scale="huge")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        run_recipe(tmp_path / "none.toml", tmp_path, data)
    with pytest.raises(ConfigError, match="is not the data folder"):
        run_recipe(RECIPE, tmp_path, tmp_path, scale="tiny")
    with pytest.raises(ConfigError, match="is not a folder"):
        run_recipe(RECIPE, tmp_path, tmp_path / "none", scale="tiny")
    with pytest.raises(ConfigError, match="no stage 'later'"):
        run_recipe(RECIPE, tmp_path, data, until="later")


def test_a_missing_source_is_named(tmp_path: Path, data: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "text/stories.train.jsonl.xz").unlink()
    with pytest.raises(ConfigError, match=r"stories\.train\.jsonl\.xz"):
        run_recipe(RECIPE, tmp_path / "run", copy, scale="tiny")


def test_progress_begins_at_once_and_names_what_is_done(data: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    run_recipe(RECIPE, tmp_path, data, scale="tiny", report=reports.append, until="vision_encoder")
    assert [*dict.fromkeys(report.stage for report in reports)] == [
        "preparation", "tokenizer", "vision_encoder"
    ]  # fmt: skip
    assert all(report.activity or report.loss is not None for report in reports)
    assert (reports[-2].step, reports[-2].steps) == (5, 5)
    assert reports[-1].activity == "measuring"
