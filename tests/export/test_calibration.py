"""Calibrated exports: what the moments are taken of, what an interrupted one keeps, what memory it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import (
    DecoderRunner,
    session,
)
from typer.testing import CliRunner

import phirt
from phirt.bundle.files import load_manifest
from phirt_apps.cli import app
from phirt_export import calibration as calibrating
from phirt_export import encoders
from phirt_export.calibration import sequences as sequencing
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_export.graphs import data_file
from phirt_export.layer_divergence import StoredMatrices
from phirt_export.model_weights import load_model
from phirt_export.reference import ROUTES
from phirt_quant import samples

PROJECTIONS = {"attn.qkv": "self_attn.qkv_proj", "attn.o": "self_attn.o_proj"}
PROJECTIONS |= {"mlp.gate_up": "mlp.gate_up_proj", "mlp.down": "mlp.down_proj"}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.fixture(scope="module")
def checkpoint(talking_checkpoint) -> Path:
    return talking_checkpoint


@pytest.fixture(scope="module")
def data(calibration_data) -> Path:
    return calibration_data


@pytest.fixture(scope="module")
def sequences(checkpoint, data):
    return calibrating.encode_samples(Checkpoint(checkpoint), calibrating.read_samples([data]), 16_384)


@pytest.fixture(scope="module")
def bundle(checkpoint, data, tmp_path_factory) -> Path:
    return export_bundle(
        checkpoint, tmp_path_factory.mktemp("gptq") / "bundle", method="gptq", calibration=[data]
    )


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_samples_become_what_the_runtime_would_make_of_them(checkpoint, bundle, sequences):
    """Prompts and features are those of the finished bundle; the answer stands behind the prompt."""
    model = phirt.load(bundle)
    by_route = {route: [s for s in sequences if s.route == route] for route in ROUTES}
    assert {route: len(found) for route, found in by_route.items()} == {"none": 5, "vision": 3, "speech": 2}
    picture = next(s for s in by_route["vision"] if s.media is not None)
    media = model.generator.prepare_media([samples.pictures()[2]], [], "low")
    prompt = model.generator.encode_prompt((phirt.Message("user", samples.IMAGE_PROMPT, media),), None, None)
    assert picture.token_ids == tuple(prompt.ids)
    rows = prompt.spans[0].features
    assert np.abs(picture.media.numpy() - rows).mean() < 0.05 * np.abs(rows).mean()
    answer = model.generator.tokenizer.encode_content("A house and the sun.")
    assert any(s.token_ids[-len(answer) :] == tuple(answer) for s in by_route["vision"])
    system, user = phirt.Message("system", "Be brief."), phirt.Message("user", "Who bakes?")
    prompt = model.generator.encode_prompt((system, user), None, None)
    call = model.generator.tokenizer.id_of("<|tool_call|>")
    ids = next(s.token_ids for s in by_route["none"] if call in s.token_ids)
    assert ids[: len(prompt.ids)] == tuple(prompt.ids) and ids.index(call) == len(ids) - 2
    passages_of_a = [model.generator.tokenizer.decode(s.token_ids) for s in by_route["none"][:2]]
    assert "".join(passages_of_a) == "\n".join(samples.SENTENCES)


def test_long_data_is_thinned_evenly(checkpoint, tmp_path):
    text = "".join(f"{chr(97 + i // 200)}{i % 200} " for i in range(5000))
    (tmp_path / "long.txt").write_text(text)
    found = calibrating.encode_samples(Checkpoint(checkpoint), calibrating.read_samples([tmp_path]), 1200)
    assert 1000 <= sum(len(s.token_ids) for s in found) <= 1200
    assert max(len(s.token_ids) for s in found) == sequencing.PASSAGE_TOKENS
    tokenizer = phirt.prompt.tokenizer.Tokenizer(checkpoint / "tokenizer.json", 1 << 20)
    first_letters = [re.search("[a-z]", tokenizer.decode(s.token_ids))[0] for s in found]
    assert first_letters == sorted(first_letters) and len(set(first_letters)) == len(found)


def inputs_of(model, sequences, module, routes=tuple(ROUTES)) -> np.ndarray:
    """float64 [positions, K]: what reaches a module in whole forward passes."""
    rows = []
    handle = module.register_forward_pre_hook(
        lambda _, args: rows.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for s in sequences:
            if s.route in routes:
                model.hidden_states(torch.tensor([s.token_ids]), s.media, s.route)
    handle.remove()
    return torch.cat(rows).double().numpy()


ADDED_TO = {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}
LAYER_PARTS = (
    ("model.layers.0.self_attn.qkv_proj", "base_layer", None),
    ("model.layers.1.mlp.down_proj", "base_layer", None),
    ("model.layers.2.self_attn.o_proj", "base_layer", None),
    ("model.layers.0.mlp.gate_up_proj", "lora_A.vision", "vision"),
    ("model.layers.2.mlp.down_proj", "lora_B.speech", "speech"),
)


def test_a_turn_longer_than_all_that_is_looked_at_stays_where_it_is_the_only_one(checkpoint, tmp_path):
    turns = [{"prompt": "one two three four five " * count, "answer": "six"} for count in (8, 4)]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    found = calibrating.encode_samples(Checkpoint(checkpoint), calibrating.read_samples([tmp_path]), 20)
    assert len(found) == 1 and len(found[0].token_ids) > 20


def hessians_of(opened, sequences) -> calibrating.Hessians:
    return calibrating.Hessians(calibrating.LayerStream(opened, opened.config, sequences))


def test_moments_are_those_of_the_whole_model(checkpoint, sequences):
    """Also out of order, and a branch's on its own route alone. Where outputs are added to the residual
    stream, positions count by their share of it.
    """
    opened = Checkpoint(checkpoint)
    model, hessians = load_model(opened), hessians_of(opened, sequences)
    for projection, part, route in LAYER_PARTS:
        name = projection if part == "base_layer" else f"{projection}.{part}"
        routes = ("none", "vision", "speech") if route is None else (route,)
        inputs = inputs_of(model, sequences, model.get_submodule(name), routes)
        if part == "base_layer" and (norm := ADDED_TO.get(projection.split(".", 3)[3])):
            stream = inputs_of(model, sequences, model.get_submodule(f"{projection[:14]}.{norm}"))
            inputs /= np.sqrt(np.square(stream).mean(axis=1, keepdims=True))
        expected = inputs.T @ inputs / len(inputs)
        found = hessians.moments(f"{projection}.{part}.weight", lambda *_: None).inputs
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    with torch.no_grad():
        rows = [model.hidden_states(torch.tensor([s.token_ids]), s.media, s.route)[0] for s in sequences]
    final = torch.cat(rows).double().numpy()
    found = hessians.moments("model.embed_tokens.weight", lambda *_: None).inputs
    np.testing.assert_allclose(found, final.T @ final / len(final), rtol=1e-3, atol=1e-5)
    assert hessians.moments("model.embed_tokens_extend.image_embed.glb_GN", lambda *_: None) is None


def test_moments_of_passes_in_bfloat16_are_nearly_the_same(checkpoint, sequences, monkeypatch):
    monkeypatch.setattr(calibrating.hessians, "_WIDE", 1)
    monkeypatch.setattr(calibrating.hessians, "product_type", lambda _: torch.bfloat16)
    opened = Checkpoint(checkpoint)
    model, hessians = load_model(opened), hessians_of(opened, sequences)
    for projection in ("model.layers.0.self_attn.qkv_proj", "model.layers.2.mlp.gate_up_proj"):
        inputs = inputs_of(model, sequences, model.get_submodule(projection))
        expected = inputs.T @ inputs / len(inputs)
        found = hessians.moments(f"{projection}.base_layer.weight", lambda *_: None)
        assert found.inputs.dtype == found.drift.dtype == np.float32
        np.testing.assert_allclose(found.inputs, expected, rtol=0, atol=0.01 * np.abs(expected).max())
        assert not found.drift.any()  # nothing is stored, and both passes round alike


def test_inputs_are_those_behind_the_stored_weights(checkpoint, sequences):
    """What is stored of the table and of earlier projections acts; what is not stored yet is the original.
    Beside the inputs stand what they and the residual stream have lost to that.
    """
    opened = Checkpoint(checkpoint)
    model, original = load_model(opened), load_model(opened)
    changed = {
        name: 0.7 * tensor.numpy()
        for name, tensor in model.state_dict().items()
        if name == "model.embed_tokens.weight"
        or re.fullmatch(r"model\.layers\.([01]\.|2\.self_attn\.qkv).*base_layer\.weight", name)
    }
    hessians = hessians_of(opened, sequences)

    def stored(name: str, start: int, stop: int) -> np.ndarray | None:
        return changed[name][start:stop] if name in changed else None

    found = hessians.moments("model.layers.2.self_attn.o_proj.base_layer.weight", stored)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in changed.items():
            state[name].copy_(torch.from_numpy(tensor))
    layers = [m.model.layers[2] for m in (model, original)]
    both = list(zip((model, original), layers, strict=True))
    x, y = (inputs_of(m, sequences, layer.self_attn.o_proj) for m, layer in both)
    sums = [inputs_of(m, sequences, layer.input_layernorm) for m, layer in both]
    scale = 1 / np.sqrt(np.square(sums[1]).mean(axis=1, keepdims=True))
    x, y, sums = x * scale, y * scale, [of * scale for of in sums]
    assert found.positions == len(x)
    for part, left in (("inputs", x), ("drift", y - x), ("missing", sums[1] - sums[0])):
        expected = left.T @ x / len(x)
        np.testing.assert_allclose(
            getattr(found, part), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=part
        )
    assert hessians.moments("model.layers.2.self_attn.qkv_proj.base_layer.weight", stored).missing is None


def over_stored_weights(checkpoint: Path, bundle: Path):
    """The reference with the bundle's table and projections; its LoRA branches are the checkpoint's."""
    model, stored_in = load_model(Checkpoint(checkpoint)), StoredMatrices(load_manifest(bundle))
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table.copy_(stored_in.matrix("embed", table.shape[1]))
        for i, layer in enumerate(model.model.layers):
            for name, projection in PROJECTIONS.items():
                weight = layer.get_submodule(projection).base_layer.weight
                stored = stored_in.matrix(f"layers.{i}.{name}", weight.shape[1])
                assert 0 < (stored - weight).abs().mean() < 0.5 * weight.abs().mean()
                weight.copy_(stored)
    return model


def test_the_bundle_follows_the_reference_over_its_own_weights(checkpoint, bundle):
    model = over_stored_weights(checkpoint, bundle)
    ids = [int(i) for i in np.random.default_rng(0).integers(5, 300, 40)]
    graph = session(bundle / "decoder.onnx")
    for i, route in enumerate(ROUTES):
        runner = DecoderRunner(graph, model.config.decoder)
        got = np.concatenate([runner.run(ids[:30], None, i), *(runner.run([t], None, i) for t in ids[30:])])
        with torch.no_grad():
            expected = model(torch.tensor([ids]), None, route)[0].numpy()
        # What remains is the rounding of activations and LoRA matrices to 8 bits.
        assert np.corrcoef(got.reshape(-1), expected.reshape(-1))[0, 1] > 0.97


def test_hidden_states_err_less_than_after_rounding_to_nearest(checkpoint, data, sequences, tmp_path):
    original, errors = load_model(Checkpoint(checkpoint)), []
    for method, given in (("gptq", [data]), ("rtn", [])):
        folder = tmp_path / method
        export_bundle(checkpoint, folder, bits=4, block_size=64, method=method, calibration=given)
        model, error = over_stored_weights(checkpoint, folder), 0.0
        with torch.no_grad():
            for s in sequences:
                ids = torch.tensor([s.token_ids])
                exact = original.hidden_states(ids, s.media, s.route)
                error += float((model.hidden_states(ids, s.media, s.route) - exact).square().sum())
        errors.append(error)
    assert errors[0] < 0.6 * errors[1]


def test_a_calibrated_export_is_the_same_every_time_and_after_an_interruption(
    checkpoint, data, bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(data_file, "_SYNC_BYTES", 20_000)
    settings = {"method": "gptq", "calibration": [data], "name": "bundle"}
    whole = hashes(export_bundle(checkpoint, tmp_path / "whole", **settings))
    output = tmp_path / "b"
    for piece in (3, 14, 30):  # among the base weights, then among the LoRA branches
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(data_file.DataFile, "append", stopping(piece))
            export_bundle(checkpoint, output, **settings)
        assert not output.exists() and output.with_name(".b.partial").exists()
    steps = []
    assert hashes(export_bundle(checkpoint, output, progress=steps.append, **settings)) == whole
    assert steps[-1].kept > 0.1 * steps[-1].weights


def stopping(after: int):
    """`DataFile.append` that is interrupted when so many pieces are written anew."""
    append, written = data_file.DataFile.append, []

    def interrupted(file, *args):
        if not file._kept:
            written.append(1)
        if len(written) > after:
            raise KeyboardInterrupt
        return append(file, *args)

    return interrupted


def test_other_calibration_data_start_anew(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr(data_file, "_SYNC_BYTES", 20_000)
    other = Path(shutil.copytree(data, tmp_path / "data"))

    def export(**options) -> int:
        steps = []
        export_bundle(
            checkpoint, tmp_path / "b", method="gptq", calibration=[other], progress=steps.append, **options
        )
        return steps[-1].kept

    for change in (lambda: None, lambda: (other / "a.txt").write_text("Something else to calibrate with.")):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(encoders, "build_vision", stopped)
            export()
        change()
        kept = export()
        assert (kept > 0) == (change() is None)
        shutil.rmtree(tmp_path / "b")


def stopped(*args, **kwargs):
    raise KeyboardInterrupt


def test_the_command_compares_the_bundle_and_says_its_size(checkpoint, data, tmp_path):
    command = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--bits", "4"]
    result = CliRunner().invoke(app, [*command, "--calibration", str(data)])
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'b'}\n"
    for route in ROUTES:
        assert re.search(rf"^{route} +\d+( +[\d.e-]+){{3}} +[\d.]+ % ", result.stderr, re.MULTILINE)
    assert re.search(r"decoder and token table +4\.50 ", result.stderr)
    assert "perplexity" in result.stderr and "sentences of the program" in result.stderr


@pytest.mark.skipif(not RESET.exists(), reason="the system does not tell the peak of a running process")
def test_moments_take_the_memory_of_a_few_layers(checkpoint, sequences):
    small = Checkpoint(checkpoint).config
    sizes = {"num_layers": 24, "intermediate_size": 24_576, "num_heads": 4}
    large = dataclasses.replace(small, decoder=dataclasses.replace(small.decoder, **sizes), adapters={})
    layer = 4 * 3 * large.decoder.hidden_size * large.decoder.intermediate_size
    texts = [s for s in sequences if s.route == "none"]

    class Source:
        """Weights that are made when they are asked for."""

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(shapes[name])

        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            return np.full((stop - start, *shapes[name][1:]), 0.01, np.float32)

        def tensor(self, name: str) -> np.ndarray:
            return np.full(shapes[name], 1 / math.prod(shapes[name][1:] or (1,)), np.float32)

    shapes = calibrating.stream.expected_shapes(large)
    hessians = calibrating.Hessians(calibrating.LayerStream(Source(), large, texts))
    RESET.write_text("5")
    before = resident("VmRSS")
    found = hessians.moments("model.layers.23.mlp.gate_up_proj.base_layer.weight", lambda *_: None).inputs
    grown = resident("VmHWM") - before
    assert found.shape == (64, 64)
    # A layer of the quantized model and one of the original, the largest tensor once more while it is copied,
    # activations inside, and what the allocator keeps of layers before: not all 24 beside that.
    assert grown < 24 * layer, f"{grown >> 20} MiB"


def resident(field: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
