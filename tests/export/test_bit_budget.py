"""Formats chosen by what rounding costs: the costs, the size that comes out, and an export that goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from small_models import config, random_model
from typer.testing import CliRunner

import phirt
from phirt.bundle.files import load_manifest
from phirt.errors import ConfigError
from phirt_apps.cli import app
from phirt_export import calibration as calibrating
from phirt_export.bit_budget import BitBudget
from phirt_export.checkpoint import Checkpoint
from phirt_export.checkpoint_scores import load_model
from phirt_export.exporter import export_bundle
from phirt_export.graphs import data_file
from phirt_export.graphs.linear import WeightFormat
from phirt_quant.blockwise import dequantize, quantize
from phirt_quant.sizes import bundle_sizes

TABLE = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.base_layer.weight"
FORMATS = tuple(WeightFormat(bits, block) for bits, block in ((4, 64), (4, 16), (8, 32)))


@pytest.fixture(scope="module")
def checkpoint(talking_checkpoint) -> Path:
    return talking_checkpoint


@pytest.fixture(scope="module")
def stream(checkpoint, calibration_data):
    opened = Checkpoint(checkpoint)
    samples = calibrating.read_samples([calibration_data])
    few = calibrating.thinned(calibrating.encode_samples(opened, samples, 4096), 400)
    return calibrating.LayerStream(opened, opened.config, few)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def divergence(model, changed, sequences) -> float:
    """Mean KL per position of a model whose weights were changed."""
    sums = positions = 0
    with torch.no_grad():
        for s in sequences:
            p, q = (
                F.log_softmax(m(torch.tensor([s.token_ids]), s.media, s.route)[0].double(), dim=-1)
                for m in (model, changed)
            )
            sums += float((p.exp() * (p - q)).sum())
            positions += len(s.token_ids)
    return sums / positions


def test_costs_are_about_what_rounding_really_costs(checkpoint, stream):
    """Each matrix rounded alone, in three formats, beside the divergence of the whole model's predictions."""
    matrices = (TABLE, DOWN, "model.layers.0.self_attn.o_proj.base_layer.weight")
    seen = []
    costs = calibrating.rounding_costs(stream, {name: FORMATS for name in matrices}, seen.append)
    assert set(costs) == set(matrices) and "model.layers.2" in seen
    model, changed = load_model(Checkpoint(checkpoint)), load_model(Checkpoint(checkpoint))
    for name in matrices:
        weight = changed.state_dict()[name]
        original = weight.clone()
        for form, cost in zip(FORMATS, costs[name], strict=True):
            block = form.block_for(weight.shape[1])
            rounded = dequantize(quantize(original.numpy(), form.bits, block))
            weight.copy_(torch.from_numpy(rounded))
            real = divergence(model, changed, stream.sequences)
            assert real / 2.5 < cost < 2.5 * real, f"{name}, {form}: {cost} for {real}"
        weight.copy_(original)


def test_what_compensation_makes_good_costs_less(stream):
    """Only the method that looks at inputs is credited for it, and in every format alike."""
    calibrated = tuple(WeightFormat(form.bits, form.block_size, "gptq") for form in FORMATS)
    costs = calibrating.rounding_costs(stream, {DOWN: FORMATS + calibrated}, lambda _: None)[DOWN]
    plain, compensated = np.array(costs[:3]), np.array(costs[3:])
    assert (compensated < plain).all()
    shares = compensated / plain
    assert shares.max() < 1.3 * shares.min()


def test_formats_are_what_a_matrix_really_stores():
    budget = BitBudget(4.8, 32, "rtn", config())  # rows of 64, 96 and 128
    assert [(f.bits, f.block_size) for f in budget.formats[TABLE]] == [(4, 64), (4, 32), (4, 16), (8, 32)]
    assert [(f.bits, f.block_size) for f in budget.formats[DOWN]] == [(4, 32), (4, 16), (8, 32)]


@pytest.mark.parametrize("bits_per_weight", [4.6, 5.2, 7.0])
def test_the_costly_matrices_get_the_bits(bits_per_weight):
    model_config = config()
    budget = BitBudget(bits_per_weight, 32, "rtn", model_config)
    costs = {
        name: [(100.0 if name == DOWN else 1.0) / 4.0 ** (8 * f.stored_bytes(1, 64) / 64) for f in of]
        for name, of in budget.formats.items()
    }
    chosen = budget.choose(costs)
    shapes = random_model(model_config).state_dict()
    size = sum(form.stored_bytes(*shapes[name].shape) for name, form in chosen.items())
    weights = sum(shapes[name].numel() for name in chosen)
    assert bits_per_weight - 0.2 < 8 * size / weights <= bits_per_weight
    rank = (chosen[DOWN].bits, -chosen[DOWN].block_size)
    assert all(rank >= (form.bits, -form.block_size) for form in chosen.values())


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_bundle_has_the_size_that_was_asked_for_and_answers(checkpoint, calibration_data, tmp_path, method):
    settings = {"method": method, "calibration": [calibration_data], "bits_per_weight": 5.4}
    bundle = export_bundle(checkpoint, tmp_path / "b", **settings)
    manifest = load_manifest(bundle)
    decoder = bundle_sizes(manifest).decoder
    assert 5.2 < decoder.bits_per_weight <= 5.4
    assert manifest.quantization["bits_per_weight"] == 5.4
    matrices = manifest.quantization["matrices"]
    assert len(matrices) > 1 and sum(matrices.values()) == 1 + 3 * 4
    # The graph says the same: every node has its own bits and blocks, the table those of its other use.
    nodes = all_nodes(onnx.load(bundle / "decoder.onnx", load_external_data=False).graph)
    forms = {}
    for node in nodes:
        attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            forms.setdefault(node.name, set()).add((attributes["bits"], attributes["block_size"]))
    assert forms["embed"] == forms["head"]
    assert len({form for of in forms.values() for form in of}) > 1
    model = phirt.load(bundle)
    assert (
        model.chat().send("Who bakes?", config=phirt.GenerationConfig(max_new_tokens=3)).result.text
        is not None
    )


def all_nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def test_its_choice_costs_less_than_one_format_for_all(checkpoint, stream):
    """At the size of blocks of 32, by the costs that are measured on the calibration data."""
    opened = Checkpoint(checkpoint)
    budget = BitBudget(5.0, 32, "rtn", opened.config)
    costs = calibrating.rounding_costs(stream, budget.formats, lambda _: None)
    chosen = budget.choose(costs)

    def cost(forms) -> float:
        return sum(costs[name][budget.formats[name].index(form)] for name, form in forms.items())

    alike = {name: WeightFormat(4, 32) for name in chosen}
    assert cost(chosen) < cost(alike)


def test_it_is_the_same_every_time_and_after_an_interruption(
    checkpoint, calibration_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(data_file, "_SYNC_BYTES", 20_000)
    settings = {"method": "gptq", "calibration": [calibration_data], "bits_per_weight": 5.4, "name": "b"}
    whole = hashes(export_bundle(checkpoint, tmp_path / "whole", **settings))
    output = tmp_path / "b"
    append, count = data_file.DataFile.append, []

    def interrupted(file, *args):
        count.append(1)
        if len(count) > 9:
            raise KeyboardInterrupt
        return append(file, *args)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(data_file.DataFile, "append", interrupted)
        export_bundle(checkpoint, output, **settings)
    assert not output.exists() and output.with_name(".b.partial").exists()
    steps = []
    assert hashes(export_bundle(checkpoint, output, progress=steps.append, **settings)) == whole
    assert steps[-1].kept > 0


def test_another_size_starts_anew(checkpoint, calibration_data, tmp_path, monkeypatch):
    monkeypatch.setattr(data_file, "_SYNC_BYTES", 20_000)
    settings = {"calibration": [calibration_data]}

    def stopped(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("phirt_export.encoders.build_vision", stopped)
        export_bundle(checkpoint, tmp_path / "b", bits_per_weight=5.4, **settings)
    assert (tmp_path / ".b.partial" / "journal").stat().st_size
    steps = []
    export_bundle(checkpoint, tmp_path / "b", bits_per_weight=4.7, progress=steps.append, **settings)
    assert steps[-1].kept == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bits_per_weight": 3.0},
            r"3 bits a weight cannot be had with blocks of 32; choose from 4\.\d\d to",
        ),
        ({"bits_per_weight": 40.0}, "cannot be had"),
        ({"bits_per_weight": float("nan")}, "cannot be had"),
        ({"bits_per_weight": 4.3}, "or another block size"),
        ({"bits_per_weight": 5.0, "bits": 8}, "leave bits at 4"),
        ({"bits_per_weight": 5.0, "embedding_bits": 8}, "embedding_bits out"),
        ({"bits_per_weight": 5.0, "block_size": 48}, "power of two"),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_work(
    checkpoint, calibration_data, tmp_path, options, message
):
    settings = {"calibration": [calibration_data]} | options
    with pytest.raises(ConfigError, match=message):
        export_bundle(checkpoint, tmp_path / "b", **settings)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_a_size_and_tells_the_bits(checkpoint, calibration_data, tmp_path):
    command = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--calibration", str(calibration_data)]
    result = CliRunner().invoke(app, [*command, "--bits-per-weight", "6.5"])
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'b'}\n"
    assert " 4, 8 " in result.stderr and "decoder and token table" in result.stderr
    described = json.loads((tmp_path / "b" / "manifest.json").read_text())["quantization"]
    assert described["bits_per_weight"] == 6.5
    result = CliRunner().invoke(app, [*command, "--bits-per-weight", "3"])
    assert result.exit_code == 1 and "cannot be had" in result.stderr
