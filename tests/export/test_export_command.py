"""`phirt export` as a user sees it: progress, the table of errors, and what Ctrl-C says."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from small_models import config, random_model, save_checkpoint
from typer.testing import CliRunner

from phirt.bundle.files import load_manifest
from phirt_apps.cli import app
from phirt_apps.commands.export import Figures
from phirt_export import encoders
from phirt_export.checkpoint import expected_shapes
from phirt_export.exporter import export_bundle
from phirt_export.progress import Step
from phirt_quant.blockwise import dequantize, quantize

# As short as an export can be.
PLAIN = ["--bits", "4", "--method", "rtn"]


@pytest.fixture(scope="module")
def model():
    return random_model(config())


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save_checkpoint(model, tmp_path_factory.mktemp("command") / "checkpoint")


def test_the_errors_reported_are_those_of_the_weights(model, checkpoint, tmp_path):
    parts = []
    export_bundle(checkpoint, tmp_path / "b", bits=4, method="rtn", encoder_bits=4, errors=parts.extend)
    assert [(part.part, part.bits) for part in parts] == [
        ("token table", (4,)), ("decoder", (4,)), ("vision adapter", (8,)), ("speech adapter", (8,)),
        ("vision encoder", (4,)), ("speech encoder", (4,)),
    ]  # fmt: skip
    weight = model.state_dict()["model.embed_tokens.weight"].numpy()
    difference = dequantize(quantize(weight, 4, 32, scale_type="float16")) - weight
    expected = (difference**2).sum() ** 0.5 / (weight**2).sum() ** 0.5
    assert parts[0].relative == parts[0].worst.relative == pytest.approx(expected, rel=1e-4)
    assert len(parts[1].tensors) == 3 * 4 and len(parts[2].tensors) == 3 * 4 * 2
    for part in parts:
        low, high = {4: (0.03, 0.15), 8: (0.001, 0.01)}[part.bits[0]]
        assert low < part.relative <= part.worst.relative < high
        assert part.worst.tensor in expected_shapes(model.config)


def test_an_unquantized_export_has_no_errors_to_report(checkpoint, tmp_path):
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--bits", "32"])
    assert result.exit_code == 0 and "relative error" not in result.stderr


def test_the_command_names_the_folder_on_stdout_and_the_errors_on_stderr(checkpoint, tmp_path):
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), *PLAIN])
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'b'}\n"
    row = r"vision encoder +\d+ +8 +0\.\d\d % +0\.\d\d % +model\.embed_tokens_extend\.image_embed"
    assert re.search(row, result.stderr)


def test_json_has_the_error_of_each_tensor(model, checkpoint, tmp_path):
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), *PLAIN, "--json"])
    report = json.loads(result.stdout)
    assert report["bundle"] == str(tmp_path / "b") and report["comparison"] is None
    found = {t["tensor"]: t for part in report["quantized"] for t in part["tensors"]}
    assert {part["part"] for part in report["quantized"]} >= {"decoder", "token table", "vision adapter"}
    name = "model.layers.1.mlp.down_proj.base_layer.weight"
    weight = model.state_dict()[name].numpy()
    error = np.linalg.norm(
        dequantize(quantize(weight, 4, 32, scale_type="float16")) - weight
    ) / np.linalg.norm(weight)
    assert found[name]["bits"] == 4 and found[name]["relative_error"] == pytest.approx(error, rel=1e-4)
    assert len(found) == sum(len(part["tensors"]) for part in report["quantized"]) > 40


def test_limits_are_the_model_s_or_those_asked_for(model, checkpoint, tmp_path):
    wanted = ["--max-image-pixels", "1000000", "--max-audio-seconds", "7.5", "--max-context", "50"]
    command = ["export", str(checkpoint), "--bits", "32"]
    assert CliRunner().invoke(app, [*command, "-o", str(tmp_path / "own")]).exit_code == 0
    assert CliRunner().invoke(app, [*command, "-o", str(tmp_path / "set"), *wanted]).exit_code == 0
    own, set_ = (load_manifest(tmp_path / name).limits for name in ("own", "set"))
    assert (own.image_pixels, own.audio_seconds, own.context) == (100_000_000, 60.0, None)
    assert (set_.image_pixels, set_.audio_seconds, set_.context) == (1_000_000, 7.5, 50)
    longer = str(model.config.decoder.rope.context + 1)
    for option, value, told in (
        ("--max-context", longer, "is too long"),
        ("--max-image-pixels", "0", "is 0"),
    ):
        result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "no"), option, value])
        assert (result.exit_code, result.stdout) == (1, "") and told in result.stderr


def test_ctrl_c_says_that_the_same_command_goes_on(checkpoint, tmp_path, monkeypatch):
    command = ["export", str(checkpoint), "-o", str(tmp_path / "b"), *PLAIN]

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoders, "build_vision", stop)
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 130 and result.stdout == ""
    assert "the same command goes on from here" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "an interrupted export goes on" in result.stderr


def test_time_left_counts_what_this_run_has_done():
    now = [0.0]
    figures = Figures(lambda: now[0])
    assert figures.of(Step("a", 1, 9, 500, 1000, 500)) == "1/9 tensors, 50 %"
    now[0] = 10.0
    assert figures.of(Step("b", 2, 9, 504, 1000, 500)) == "2/9 tensors, 50 %"  # too little to go by
    assert figures.of(Step("b", 2, 9, 600, 1000, 500)) == "2/9 tensors, 60 %, 0:00:40 left"
