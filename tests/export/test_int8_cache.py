"""Keys and values in int8: scales that fit, attention over what was rounded, conversations that go on."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import zipfile

import numpy as np
import onnx
import pytest
import torch
from checkpoints.write import write_checkpoint
from safetensors.torch import load_file, save_file
from small_models import DecoderRunner, config, random_model, rope, save_checkpoint, session
from typer.testing import CliRunner

import phirt
from phirt.bundle.files import load_manifest
from phirt.bundle.manifest import TensorSpec
from phirt.errors import BundleError, ConfigError, ConversationError
from phirt.generate.kv_cache import KVCache, cache_dtype
from phirt.generate.sequence import Prompt
from phirt.runtime.device import CPU
from phirt_apps.cli import app
from phirt_export import calibration as calibrating
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import Calibrated, export_bundle, write_graphs
from phirt_export.formats import choose_formats
from phirt_export.graphs.decoder import KVScales
from phirt_export.model_weights import load_model
from phirt_export.reference import decoder
from phirt_quant import samples

ROUTES = ("none", "vision", "speech")
SHORT = phirt.GenerationConfig(max_new_tokens=8, seed=1)  # repeatable, as for what is drafted


@pytest.fixture
def attention(monkeypatch):
    """Calls a function on the rotated keys and the values of each attention of the reference, query heads
    beside each other, and attends to what it returns.
    """
    attend = decoder.F.scaled_dot_product_attention

    def hook(change) -> None:
        monkeypatch.setattr(
            decoder.F,
            "scaled_dot_product_attention",
            lambda q, k, v, **options: attend(q, *change(k, v), **options),
        )

    return hook


@pytest.fixture(scope="module")
def bundle(talking_checkpoint, calibration_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    return export_bundle(talking_checkpoint, folder, bits=32, kv="int8", calibration=[calibration_data])


@pytest.fixture(scope="module")
def model(bundle):
    return phirt.load(bundle)


def stored_scales(bundle) -> list[np.ndarray]:
    """Of key and value of each layer in turn, float32 [kv_heads, head_dim]; stacks of routes share them."""
    graph = onnx.load(bundle / "decoder.onnx").graph
    found = {}
    pending = [graph]
    while pending:
        graph = pending.pop()
        arrays = {t.name: t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL}
        for node in graph.node:
            pending += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            if node.op_type == "GroupQueryAttention":
                layer = int(node.input[3].split(".")[1])
                for part, name in enumerate(node.input[12:14]):
                    found[layer, part] = onnx.numpy_helper.to_array(arrays[name])
    return [found[key] for key in sorted(found)]


def test_scales_leave_headroom_over_what_calibration_saw(
    talking_checkpoint, calibration_data, bundle, attention
):
    """Keys: of the pairs' lengths, which no rotation changes."""
    opened = Checkpoint(talking_checkpoint)
    sequences = calibrating.encode_samples(opened, calibrating.read_samples([calibration_data]), 4096)
    reference, seen = load_model(opened), []
    attention(lambda k, v: (seen.append((k, v)), (k, v))[1])
    with torch.no_grad():
        for s in sequences:
            reference.hidden_states(torch.tensor([s.token_ids]), s.media, s.route)
    c, scales = opened.config.decoder, stored_scales(bundle)
    assert len(scales) == 2 * c.num_layers and {s.route for s in sequences} == set(ROUTES)
    group = c.num_heads // c.num_kv_heads
    for layer in range(c.num_layers):
        keys, values = (
            torch.cat([kv[part][0, ::group] for kv in seen[layer :: c.num_layers]], 1) for part in (0, 1)
        )
        half = c.rope.rotary_dim // 2
        lengths = torch.hypot(keys[..., :half], keys[..., half : 2 * half])
        keys = torch.cat((lengths, lengths, keys[..., 2 * half :].abs()), -1)
        for found, expected in zip(scales[2 * layer :], (keys, values.abs()), strict=False):
            np.testing.assert_allclose(found, 1.5 * expected.amax(1).numpy() / 127, rtol=1e-4)


@pytest.mark.parametrize("route", ROUTES)
def test_logits_are_those_of_attention_to_rounded_keys_and_values(tmp_path, attention, route):
    """In chunks and in steps, past the original context too, where rotation changes."""
    reference = random_model(config(rotary=rope(original_context=40, context=160, long=True)))
    c, rng = reference.config.decoder, np.random.default_rng(0)
    scales = [
        KVScales(*rng.uniform(0.02, 0.06, (2, c.num_kv_heads, c.head_dim)).astype(np.float32))
        for _ in range(c.num_layers)
    ]
    opened = Checkpoint(save_checkpoint(reference, tmp_path / "checkpoint"))
    formats = choose_formats(32, 32, None, 32, 32, "rtn")
    write_graphs(tmp_path, opened.config, opened, formats, Calibrated(kv_scales=scales))
    graph, ids = session(tmp_path / "decoder.onnx"), rng.integers(5, 160, 60).tolist()
    for length in (36, 60):
        runner = DecoderRunner(graph, c)
        runner.run(ids[:20], None, ROUTES.index(route), announced=length)
        runner.run(ids[20 : length - 3], None, ROUTES.index(route), announced=length)
        logits = np.concatenate(
            [runner.run([i], None, ROUTES.index(route)) for i in ids[length - 3 : length]]
        )
        calls = itertools.count()

        def rounded(k, v, calls=calls):
            layer = scales[next(calls) % c.num_layers]
            return kept(k, layer.key), kept(v, layer.value)

        expected, unrounded = (
            reference_logits(reference, ids[:length], route, attention, change)
            for change in (rounded, lambda k, v: (k, v))
        )
        # A sum in another order can move a value to the next code, and these wild weights amplify that.
        assert np.abs(logits - expected).max() < 0.1 * np.abs(logits - unrounded).max()


def kept(values: torch.Tensor, scales: np.ndarray) -> torch.Tensor:
    """Heads [1, H, T, D], those of keys repeated for their queries, as codes of these scales give them."""
    by_head = torch.from_numpy(scales).repeat_interleave(values.shape[1] // len(scales), 0)[None, :, None]
    return (values / by_head).round().clamp(-128, 127) * by_head


def reference_logits(reference, ids, route, attention, change) -> np.ndarray:
    """Of the last three positions, with attention to what `change` makes of keys and values."""
    attention(change)
    with torch.no_grad():
        return reference(torch.tensor([ids]), None, route)[0, -3:].numpy()


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "phi-3-mini"])
def test_every_kind_of_attention_can_keep_int8(tmp_path, ranks, family):
    """Sliding windows, biases, norms of keys: the logits are near those of float32."""
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint(checkpoint, family, ranks, scale="small")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(samples.SENTENCES))
    bundles = [
        export_bundle(checkpoint, tmp_path / kv, bits=32, kv=kv, calibration=[text] if kv == "int8" else [])
        for kv in ("float32", "int8")
    ]
    models = [phirt.load(bundle) for bundle in bundles]
    ids = np.array(models[0].generator.tokenizer.encode_content(samples.SENTENCES[0]), dtype=np.int64)
    expected, found = (m.generator.new_engine().prefill_prompt(Prompt(ids)).copy() for m in models)
    assert 0 < np.abs(found - expected).mean() < 0.05 * expected.std()


def test_a_conversation_goes_on_where_it_was_saved(model, tmp_path):
    chat = model.chat()
    chat.send("What does the baker do? " * 20, images=[samples.pictures()[0]], config=SHORT).text()
    chat.save(tmp_path / "talk")
    with zipfile.ZipFile(tmp_path / "talk") as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        header = archive.read("cache/0.key.npy")[:64]
    c = model.manifest.geometry
    positions = (sizes["cache/0.key.npy"] - 128) // (c.num_kv_heads * c.head_dim)
    assert b"'|i1'" in header and positions > 256  # the buffers have grown
    expected, fork = chat.fork().send("And then?", config=SHORT).result, chat.fork()
    restored = model.load_chat(tmp_path / "talk").send("And then?", config=SHORT).result
    assert restored.token_ids == expected.token_ids and restored.usage == expected.usage
    assert fork.send("And then?", config=SHORT).result.token_ids == expected.token_ids


def test_a_conversation_of_the_other_type_is_refused(model, talking_checkpoint, tmp_path):
    """Even where somebody made it look like this bundle's."""
    other = phirt.load(export_bundle(talking_checkpoint, tmp_path / "float", bits=32))
    chat = other.chat()
    chat.send("hello", config=SHORT).text()
    chat.save(tmp_path / "talk")
    with zipfile.ZipFile(tmp_path / "talk") as source, zipfile.ZipFile(tmp_path / "forged", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(
                name,
                content.replace(other.manifest.fingerprint.encode(), model.manifest.fingerprint.encode()),
            )
    with pytest.raises(ConversationError, match=r"0\.key\.npy is no int8 array"):
        model.load_chat(tmp_path / "forged")


def test_speculation_changes_nothing(model):
    question = "Say again: the baker bakes bread, the baker bakes bread, the baker bakes bread."
    config = phirt.GenerationConfig(max_new_tokens=32)
    answers = [
        model.chat().send(question, config=dataclasses.replace(config, speculation=on)).result.token_ids
        for on in (True, False)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("given", "inside"), [(None, "1"), ("0", "0")])
def test_the_kernel_is_chosen_while_the_decoder_opens_and_no_longer(model, plain, monkeypatch, given, inside):
    """Where somebody has chosen already, their choice stays."""
    name = "ORT_GQA_DISABLE_FLASH_ATTENTION"
    monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv(name, given)
    with CPU.attention_kernel(cache_dtype(model.manifest.graphs["decoder"].inputs)):
        assert os.environ.get(name) == inside
    assert os.environ.get(name) == given
    with CPU.attention_kernel(cache_dtype(load_manifest(plain.bundle).graphs["decoder"].inputs)):
        assert os.environ.get(name) == given


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("int8", "float32"), "float32 and int8"),
        (("float64", "float64"), "as float64, accepted: float32"),
        (("int8",), "takes 1 cache buffers"),
        ((), "as nothing"),
    ],
)
def test_graphs_with_other_caches_are_refused(model, dtypes, expected):
    geometry = dataclasses.replace(model.manifest.geometry, num_layers=1)
    names = ("past_key_values.0.key", "past_key_values.0.value")
    inputs = [TensorSpec(name, dtype, (1,)) for name, dtype in zip(names, dtypes, strict=False)]
    with pytest.raises(BundleError, match=expected):
        KVCache.of_graph(inputs, geometry)


def test_keys_that_overflow_are_the_checkpoints_fault(talking_checkpoint, calibration_data, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(talking_checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.self_attn.qkv_proj.base_layer.weight"].fill_(3e38)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="keys or values are not finite"):
        export_bundle(folder, tmp_path / "b", bits=32, kv="int8", calibration=[calibration_data])


def test_an_output_that_cannot_be_replaced_is_refused_before_anything_is_computed(
    talking_checkpoint, calibration_data, tmp_path, monkeypatch
):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(calibrating, "kv_scales", lambda *_: pytest.fail("calibrated first"))
    with pytest.raises(ConfigError, match="is not a bundle, so it is not overwritten"):
        export_bundle(
            talking_checkpoint, tmp_path, kv="int8", calibration=[calibration_data], bits=4, method="rtn"
        )


def test_what_the_command_says(talking_checkpoint, calibration_data, tmp_path):
    command = ["export", str(talking_checkpoint), "-o", str(tmp_path / "b"), "--kv"]
    result = CliRunner().invoke(app, [*command, "int4"])
    assert result.exit_code == 1 and "kept as 'int4'; choose from float32, int8" in result.stderr
    result = CliRunner().invoke(app, [*command, "int8"])
    assert result.exit_code == 1 and "kv int8" in result.stderr and "--calibration" in result.stderr
    assert not (tmp_path / "b").exists()
    result = CliRunner().invoke(app, [*command, "int8", "--calibration", str(calibration_data)])
    assert result.exit_code == 0
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "b")])
    assert "kv_cache int8" in " ".join(result.stdout.split())
