"""Quantized bundles: near the reference over dequantized weights, small on disk, bounded in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
import torch
from small_models import DecoderRunner, config, random_model, save_checkpoint, session

from phirt_export.checkpoint import expected_shapes
from phirt_export.exporter import export_bundle
from phirt_export.graphs import linear
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import DataFile
from phirt_export.graphs.linear import Matrix, WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_quant.blockwise import dequantize, quantize
from phirt_train.quantize_aware import to_grid

ROUTES = ("none", "vision", "speech")


@pytest.fixture(scope="module")
def model():
    return random_model(config())


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return save_checkpoint(model, tmp_path_factory.mktemp("quantized") / "checkpoint")


def dequantized_model(bits: int):
    """The reference with base weights and table at `bits`, LoRA matrices at 8, everything in blocks of 32 or
    less.
    """
    model = random_model(config())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            is_decoder = name.startswith("model.layers.") and tensor.dim() == 2
            if is_decoder or name == "model.embed_tokens.weight":
                is_lora = "lora" in name
                block = 16 if is_lora and tensor.shape[1] <= 16 else 32
                stored = quantize(tensor.numpy(), 8 if is_lora else bits, block)
                tensor.copy_(torch.from_numpy(dequantize(stored)))
    return model


@pytest.mark.parametrize("bits", [4, 8])
def test_logits_follow_the_dequantized_weights(checkpoint, tmp_path, bits):
    bundle = export_bundle(checkpoint, tmp_path / "b", bits=bits, method="rtn")
    graph, reference = session(bundle / "decoder.onnx"), dequantized_model(bits)
    ids = [int(i) for i in np.random.default_rng(0).integers(3, 160, 40)]
    for i, route in enumerate(ROUTES):
        runner = DecoderRunner(graph, reference.config.decoder)
        got = np.concatenate([runner.run(ids[:30], None, i), *(runner.run([t], None, i) for t in ids[30:])])
        with torch.no_grad():
            expected = reference(torch.tensor([ids]), None, route)[0].numpy()
        # What remains is the rounding of activations to 8 bits, which these wild random weights amplify.
        assert np.corrcoef(got.reshape(-1), expected.reshape(-1))[0, 1] > 0.97


@pytest.mark.parametrize(
    ("bits", "block_size", "columns", "expected"),
    [
        (4, 128, 3072, 128),
        (8, 128, 320, 64),  # 5 x 68 bytes; 3 x 132 in blocks of 128, 10 x 36 in blocks of 32
        (8, 128, 8, 16),
        (8, 128, 64, 64),
        (4, 16, 40, 16),
        (4, 128, 588, 128),  # 5 x 68 bytes, as 10 x 36 in blocks of 64 are more
    ],
)
def test_the_block_is_the_one_that_stores_a_row_in_the_fewest_bytes(bits, block_size, columns, expected):
    assert WeightFormat(bits, block_size).block_for(columns) == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_encoders_with_8_bits_stay_close(checkpoint, model, tmp_path, bits):
    bundle = export_bundle(checkpoint, tmp_path / "b", encoder_bits=bits, bits=4, method="rtn")
    clip = np.random.default_rng(1).standard_normal((1, 200, 80)).astype(np.float32)
    feeds = {"audio_embeds": clip, "projector": np.zeros(1, np.int64)}
    (features,) = session(bundle / "speech.onnx").run(None, feeds)
    with torch.no_grad():
        expected = model.audio_embed(torch.from_numpy(clip), "speech")[0].numpy()
    error = np.abs(features - expected).mean() / np.abs(expected).mean()
    assert error < {4: 0.3, 8: 0.03}[bits]


def external(path) -> dict[str, tuple[int, int]]:
    """Initializer name -> (offset, length) over the main graph of a model."""
    graph = onnx.load(path, load_external_data=False).graph
    entries = {}
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            entries[tensor.name] = (int(where["offset"]), int(where["length"]))
    return entries


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_embedding_and_head_share_their_bytes(checkpoint, tmp_path, bits):
    bundle = export_bundle(checkpoint, tmp_path / "b", bits=bits, method="rtn")
    entries = external(bundle / "decoder.onnx")
    part = "weight" if bits == 32 else "codes"
    assert entries[f"embed.{part}"] == entries[f"head.{part}"]
    assert entries[f"embed.{part}"][1] == 160 * 64 * bits // 8


def test_base_weights_are_stored_once_for_all_routes(checkpoint, tmp_path):
    plain = save_checkpoint(random_model(config(adapters=())), tmp_path / "plain")
    sizes = [
        (export_bundle(folder, tmp_path / name, bits=4, method="rtn") / "decoder.data").stat().st_size
        for name, folder in (("routed", checkpoint), ("unrouted", plain))
    ]
    shapes = expected_shapes(config())
    base = sum(np.prod(shape) for name, shape in shapes.items() if "base_layer" in name) // 2
    lora = sum(np.prod(shape) for name, shape in shapes.items() if "lora" in name)
    # LoRA codes take a byte each, a little more with scales and padding; another base stack would show.
    assert lora <= sizes[0] - sizes[1] < lora + base


def test_the_table_can_keep_more_bits_than_the_projections(checkpoint, tmp_path):
    bundle = export_bundle(checkpoint, tmp_path / "b", bits=4, embedding_bits=8, method="rtn")
    assert external(bundle / "decoder.onnx")["head.codes"][1] == 160 * 64
    runner = DecoderRunner(session(bundle / "decoder.onnx"), config().decoder)
    assert np.isfinite(runner.run([5, 6, 7])).all()


class _Generated:
    """A weight too large to hold, made row by row."""

    def shape(self, name: str) -> tuple[int, ...]:
        return (1 << 16, 256)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.random.default_rng(start).standard_normal((stop - start, 256)).astype(np.float32)


def test_memory_is_bounded_by_a_slab_and_not_by_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "_SLAB_ELEMENTS", 1 << 18)
    tracemalloc.start()
    try:
        with DataFile(tmp_path / "w.data") as data:
            store = WeightStore(GraphBuilder("w", data), _Generated())
            stored = store.blocks(Matrix(store.source, "w"), WeightFormat(4, 128))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored.codes.tensor.shape.numpy() == (1 << 16, 2, 64)
    assert peak < 16 << 20 < 4 * (1 << 24)


@pytest.mark.parametrize("block_size", [16, 32])
def test_training_on_the_grid_sees_the_values_that_are_exported(block_size):
    weight = np.random.default_rng(7).standard_normal((64, 96)).astype(np.float32)
    trained_on = to_grid(torch.from_numpy(weight), block_size).numpy()
    np.testing.assert_array_equal(trained_on, dequantize(quantize(weight, 4, block_size)))
    np.testing.assert_array_equal(trained_on, dequantize(quantize(trained_on, 4, block_size)))
