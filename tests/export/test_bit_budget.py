"""Formats chosen by what rounding costs: the costs, the size that comes out, and an export that goes on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
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
from phirt_export import bit_budget, formats
from phirt_export import calibration as calibrating
from phirt_export.bit_budget import BitBudget
from phirt_export.calibration import Costs, MatrixRows
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_export.formats import default_method
from phirt_export.graphs import data_file
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.model_weights import load_model
from phirt_quant.allocation import allocate
from phirt_quant.blockwise import dequantize, quantize
from phirt_quant.sizes import bundle_sizes

TABLE = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.base_layer.weight"
FORMATS = tuple(WeightFormat(bits, block) for bits, block in ((4, 64), (4, 16), (8, 32)))


@pytest.fixture(scope="module")
def checkpoint(talking_checkpoint) -> Path:
    return talking_checkpoint


def whole(name: str, checkpoint: Path) -> MatrixRows:
    return MatrixRows(name, 0, Checkpoint(checkpoint).shape(name)[0])


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
    rows = {name: whole(name, checkpoint) for name in matrices}
    costs = calibrating.rounding_costs(stream, {of: FORMATS for of in rows.values()}, seen.append)
    assert set(costs.weights) == set(rows.values()) and "model.layers.2" in seen
    assert set(costs.inputs) == {of for name, of in rows.items() if name != TABLE}
    model, changed = load_model(Checkpoint(checkpoint)), load_model(Checkpoint(checkpoint))
    for name in matrices:
        weight = changed.state_dict()[name]
        original = weight.clone()
        for form, cost in zip(FORMATS, costs.weights[rows[name]], strict=True):
            block = form.block_for(weight.shape[1])
            rounded = dequantize(quantize(original.numpy(), form.bits, block))
            weight.copy_(torch.from_numpy(rounded))
            real = divergence(model, changed, stream.sequences)
            assert real / 2.5 < cost < 2.5 * real, f"{name}, {form}: {cost} for {real}"
        weight.copy_(original)


def test_costs_of_rounded_inputs_are_about_what_they_really_are(checkpoint, stream):
    """All projections of a layer with inputs as the kernel rounds them, beside the sum of their costs."""
    opened = Checkpoint(checkpoint)
    budget = BitBudget(5.4, 32, "rtn", opened.config)
    costs = calibrating.rounding_costs(stream, budget.formats, lambda _: None).inputs
    model, changed = load_model(opened), load_model(opened)

    def rounded(module, args):
        blocks = F.pad(args[0], (0, -args[0].shape[-1] % 64)).unflatten(-1, (-1, 64))
        step = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        return ((blocks / step).round() * step).flatten(-2)[..., : args[0].shape[-1]], *args[1:]

    for name, module in changed.named_modules():
        if name.startswith("model.layers.1.") and name.endswith("_proj"):
            module.register_forward_pre_hook(rounded)
    cost = sum(of for rows, of in costs.items() if rows.tensor.startswith("model.layers.1."))
    real = divergence(model, changed, stream.sequences)
    assert real / 2.5 < cost < 2.5 * real, f"{cost} for {real}"


def test_inputs_that_cost_most_are_rounded_twice():
    """Up to a share of the weights, and never those of a table."""
    budget = BitBudget(5.0, 32, "rtn", config())
    weights = {rows: tuple(0.25**form.bits for form in of) for rows, of in budget.formats.items()}
    out = "model.layers.1.self_attn.o_proj.base_layer.weight"
    inputs = {rows: 1.0 if rows.tensor == out else 1e-6 for rows in budget.formats if rows.tensor != TABLE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bit_budget, "_ROUNDED_TWICE", 0.12)
        chosen = budget.choose(Costs(weights, inputs))
    twice = [t for t, of in chosen.items() if any(rows.form.activations == "int8_twice" for rows in of)]
    assert out in twice and TABLE not in twice and len(twice) < 4


def test_what_compensation_makes_good_costs_less(checkpoint, stream):
    """Only the method that looks at inputs is credited for it, and in every format alike."""
    calibrated = tuple(WeightFormat(form.bits, form.block_size, "gptq") for form in FORMATS)
    rows = whole(DOWN, checkpoint)
    costs = calibrating.rounding_costs(stream, {rows: FORMATS + calibrated}, lambda _: None).weights[rows]
    plain, compensated = np.array(costs[:3]), np.array(costs[3:])
    assert (compensated < plain).all()
    shares = compensated / plain
    assert shares.max() < 1.3 * shares.min()


def test_formats_are_what_a_matrix_really_stores():
    budget = BitBudget(4.8, 32, "rtn", config())  # rows of 64, 96 and 128
    tables = [((64, 32, 16), (64, 32)), TABLE], [((32, 16), (32,)), DOWN]
    for (fewest, finer), name in tables:
        rows = next(rows for rows in budget.formats if rows.tensor == name)
        formats = [(form.bits, form.block_size) for form in budget.formats[rows]]
        assert formats == [(4, b) for b in fewest] + [(bits, b) for bits in (6, 8) for b in finer]


def test_queries_keys_and_values_gate_and_up_have_formats_of_their_own():
    model_config = config()
    decoder, width = model_config.decoder, model_config.decoder.head_dim
    budget = BitBudget(4.8, 32, "rtn", model_config)
    queries, keys = decoder.num_heads * width, decoder.num_kv_heads * width
    of = {rows.tensor: [] for rows in budget.formats}
    for rows in budget.formats:
        of[rows.tensor].append((rows.first, rows.stop))
    layer, inner = "model.layers.0", decoder.intermediate_size
    assert of[f"{layer}.self_attn.qkv_proj.base_layer.weight"] == [
        (0, queries), (queries, queries + keys), (queries + keys, queries + 2 * keys)
    ]  # fmt: skip
    assert of[f"{layer}.mlp.gate_up_proj.base_layer.weight"] == [(0, inner), (inner, 2 * inner)]
    assert len(of[f"{layer}.self_attn.o_proj.base_layer.weight"]) == 1
    assert of[TABLE] == [(0, 10), (10, 20), (20, 40), (40, 80), (80, 160)]  # its first rows are used most


@pytest.mark.parametrize("bits_per_weight", [4.6, 5.2, 7.0])
def test_the_costly_matrices_get_the_bits(bits_per_weight):
    budget = BitBudget(bits_per_weight, 32, "rtn", config())
    costs = {
        rows: tuple(
            (100.0 if rows.tensor == DOWN else 1.0) / 4.0 ** (8 * f.stored_bytes(1, 64) / 64) for f in of
        )
        for rows, of in budget.formats.items()
    }
    chosen = budget.choose(Costs(costs, {}))
    shapes = random_model(config()).state_dict()
    size = sum(
        rows.form.stored_bytes(rows.stop - rows.first, shapes[name].shape[1])
        for name, of in chosen.items()
        for rows in of
    )
    weights = sum(shapes[name].numel() for name in chosen)
    assert bits_per_weight - 0.2 < 8 * size / weights <= bits_per_weight
    forms = {name: [(rows.form.bits, -rows.form.block_size) for rows in of] for name, of in chosen.items()}
    assert all(forms[DOWN][0] >= form for of in forms.values() for form in of)
    for name, of in chosen.items():
        edges = [edge for rows in of for edge in (rows.first, rows.stop)]
        assert edges[0] == 0 and edges[-1] == len(shapes[name]) and edges[1:-1:2] == edges[2::2]
        assert all(one.form != other.form for one, other in itertools.pairwise(of))


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_bundle_has_the_size_that_was_asked_for_and_answers(checkpoint, calibration_data, tmp_path, method):
    settings = {"method": method, "calibration": [calibration_data], "bits_per_weight": 5.4}
    bundle = export_bundle(checkpoint, tmp_path / "b", **settings)
    manifest = load_manifest(bundle)
    decoder = bundle_sizes(manifest).decoder
    assert 5.2 < decoder.bits_per_weight <= 5.4
    assert manifest.quantization["bits_per_weight"] == 5.4
    matrices = manifest.quantization["matrices"]
    assert len(matrices) > 1 and sum(matrices.values()) >= 1 + 3 * 4
    # The graph says the same: every node has its own bits and blocks, the table those of its other use.
    nodes = all_nodes(onnx.load(bundle / "decoder.onnx", load_external_data=False).graph)
    forms = {}
    for node in nodes:
        attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            forms.setdefault(node.name, set()).add((attributes["bits"], attributes["block_size"]))
    tables = {name for name in forms if name.startswith("embed")}
    assert tables and all(forms[name] == forms[name.replace("embed", "head")] for name in tables)
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
    """At the size of blocks of 16, by the costs that are measured on the calibration data."""
    opened = Checkpoint(checkpoint)
    budget = BitBudget(5.0, 32, "rtn", opened.config)
    costs = calibrating.rounding_costs(stream, budget.formats, lambda _: None)
    form = WeightFormat(4, 16, scale_type="float16")
    alike = sum(of[budget.formats[rows].index(form)] for rows, of in costs.weights.items())
    picked = []

    def watched(choices, size):
        picked.extend(allocate(choices, size))
        return picked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bit_budget, "allocate", watched)
        budget.choose(costs)
    assert sum(of[i] for of, i in zip(costs.weights.values(), picked, strict=True)) < alike


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


def test_bits_are_chosen_by_phirts_own_text_where_nothing_is_asked_for(checkpoint, tmp_path):
    """As small as it can be within the divergence that is accepted; a tighter bound takes more bytes."""
    sizes = {}
    for most in (0.3, 0.003):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bit_budget, "MOST_DIVERGENCE", most)
            manifest = load_manifest(export_bundle(checkpoint, tmp_path / str(most)))
        assert manifest.quantization["method"] == "gptq"
        assert sum(manifest.quantization["matrices"].values()) >= 1 + 3 * 4
        assert "bits_per_weight" not in manifest.quantization
        sizes[most] = bundle_sizes(manifest).decoder.bits_per_weight
    assert sizes[0.3] < sizes[0.003]


def test_only_a_decoder_that_is_not_too_large_is_calibrated_by_default(monkeypatch):
    assert default_method(config(), 4) == "gptq"
    assert default_method(config(), 8) == "mse"
    monkeypatch.setattr(formats, "_MOST_CALIBRATED_WEIGHTS", 1000)
    assert default_method(config(), 4) == "mse"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bits_per_weight": 3.0},
            r"3 bits a weight cannot be had with blocks of 32; choose from 4\.\d\d to",
        ),
        ({"bits_per_weight": 40.0}, "cannot be had"),
        ({"bits_per_weight": float("nan")}, "cannot be had"),
        ({"bits_per_weight": 4.2}, "or another block size"),
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
    assert re.search(r" 4, (6|8|6, 8) ", result.stderr) and "decoder and token table" in result.stderr
    described = json.loads((tmp_path / "b" / "manifest.json").read_text())["quantization"]
    assert described["bits_per_weight"] == 6.5
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "b")]).stdout
    for form, count in described["matrices"].items():
        assert re.search(rf"^{form} +{count}$", shown, re.MULTILINE)
    assert re.search(r"^token table +\d\.\d\d ", shown, re.MULTILINE) and "{" not in shown
    result = CliRunner().invoke(app, [*command, "--bits-per-weight", "3"])
    assert result.exit_code == 1 and "cannot be had" in result.stderr
