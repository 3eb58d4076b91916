"""The unquantized decoder graph against the reference model: every route, prefill and decode, chunks, media,
regimes.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from small_models import AUDIO, IMAGE, DecoderRunner, config, random_model, rope, save_checkpoint, session

from phirt_export.exporter import export_bundle
from phirt_export.graphs import lora

TOLERANCE = 1e-3
ROUTES = ("none", "vision", "speech")
STEPS = 32


def reference_logits(model, ids, route, media=None) -> np.ndarray:
    """Logits [T, vocab] of a whole sequence."""
    features = None if media is None else torch.from_numpy(media)
    with torch.no_grad():
        return model(torch.tensor([ids]), features, route)[0].numpy()


def text(count: int, seed: int = 0) -> list[int]:
    """Ids that are no placeholders."""
    return [int(i) for i in np.random.default_rng(seed).integers(3, 160, count)]


@pytest.mark.parametrize("route", ROUTES)
def test_prefill_and_32_greedy_steps_agree(exported, route):
    model = exported.model
    runner = DecoderRunner(session(exported.bundle / "decoder.onnx"), model.config.decoder)
    ids = text(7) if route == "none" else [5, IMAGE, IMAGE, 9, AUDIO, AUDIO, AUDIO, 7]
    rows = 0 if route == "none" else 5
    media = np.random.default_rng(1).standard_normal((rows, 64)).astype(np.float32)
    route_id = ROUTES.index(route)
    logits = runner.run(ids, media, route_id)
    np.testing.assert_allclose(logits, reference_logits(model, ids, route, media), atol=TOLERANCE)
    for _ in range(STEPS):
        ids = [*ids, int(logits[-1].argmax()) if logits[-1].argmax() > AUDIO else 3]
        if len(ids) > model.config.decoder.rope.original_context:
            break
        logits = runner.run(ids[-1:], None, route_id)
        expected = reference_logits(model, ids, route, media)
        np.testing.assert_allclose(logits[-1], expected[-1], atol=TOLERANCE)
    assert len(ids) == (8 if rows else 7) + STEPS


def test_routes_differ_at_every_decode_step(exported):
    model = exported.model
    graph = session(exported.bundle / "decoder.onnx")
    runners = [DecoderRunner(graph, model.config.decoder) for _ in ROUTES]
    prompt, answer = text(7), text(STEPS, seed=2)
    for step in [prompt, *([i] for i in answer)]:
        none, vision, speech = (runner.run(step, None, i)[-1] for i, runner in enumerate(runners))
        for a, b in ((none, vision), (none, speech), (vision, speech)):
            assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("chunks", [[1] * 20, [7, 13], [4, 1, 15], [20]])
def test_chunked_prefill_with_media_across_chunks_agrees(exported, chunks):
    model = exported.model
    ids = [5, 6, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 9, 10, AUDIO, AUDIO, AUDIO, AUDIO, AUDIO, *text(5)]
    media = np.random.default_rng(3).standard_normal((11, 64)).astype(np.float32)
    runner = DecoderRunner(session(exported.bundle / "decoder.onnx"), model.config.decoder)
    got, at, row = [], 0, 0
    for size in chunks:
        chunk = ids[at : at + size]
        rows = sum(i in (IMAGE, AUDIO) for i in chunk)
        got.append(runner.run(chunk, media[row : row + rows], route=1))
        at, row = at + size, row + rows
    np.testing.assert_allclose(
        np.concatenate(got), reference_logits(model, ids, "vision", media), atol=TOLERANCE
    )


@pytest.mark.parametrize("route", [0, 1, 2])
def test_only_the_asked_logits_are_returned(exported, route):
    model = exported.model
    graph = session(exported.bundle / "decoder.onnx")
    ids = text(9)
    expected = reference_logits(model, [*ids, 50], ROUTES[route])
    for asked in (0, 1, 4, 9):
        runner = DecoderRunner(graph, model.config.decoder)
        logits = runner.run(ids, None, route, num_logits=asked)
        assert logits.shape == (asked, 160)
        np.testing.assert_allclose(logits, expected[9 - asked : 9], atol=TOLERANCE)
        # Keys and values of positions whose logits were not asked for are there all the same.
        np.testing.assert_allclose(runner.run([50], None, route)[-1], expected[9], atol=TOLERANCE)


@pytest.mark.parametrize("route", [0, 1, 2])
@pytest.mark.parametrize("chunks", [[70], [30, 30, 10], [1, 39, 30], [41, 29]])
def test_the_long_regime_holds_for_all_positions_of_an_announced_prompt(long, route, chunks):
    ids = text(70)
    runner = DecoderRunner(session(long.bundle / "decoder.onnx"), long.model.config.decoder)
    got, at = [], 0
    for size in chunks:
        got.append(runner.run(ids[at : at + size], None, route, announced=70))
        at += size
    np.testing.assert_allclose(
        np.concatenate(got), reference_logits(long.model, ids, ROUTES[route]), atol=TOLERANCE
    )
    for token in text(3, seed=4):
        ids.append(token)
        expected = reference_logits(long.model, ids, ROUTES[route])[-1]
        np.testing.assert_allclose(runner.run([token], None, route)[-1], expected, atol=TOLERANCE)


def test_the_short_regime_ends_exactly_past_the_original_context(long):
    graph, ids = session(long.bundle / "decoder.onnx"), text(41)
    for length in (40, 41):
        runner = DecoderRunner(graph, long.model.config.decoder)
        expected = reference_logits(long.model, ids[:length], "none")
        np.testing.assert_allclose(runner.run(ids[:length]), expected, atol=TOLERANCE)


def test_context_extension_scales_the_tables_without_a_long_regime(tmp_path):
    model = random_model(config(rotary=rope(original_context=32, context=128)))
    assert not model.config.decoder.rope.has_long_regime
    bundle = export_bundle(save_checkpoint(model, tmp_path / "c"), tmp_path / "b", bits=32)
    runner = DecoderRunner(session(bundle / "decoder.onnx"), model.config.decoder)
    ids = text(50)
    np.testing.assert_allclose(runner.run(ids), reference_logits(model, ids, "none"), atol=TOLERANCE)


@pytest.mark.parametrize("adapter", ["vision", "speech"])
def test_one_adapter_leaves_the_other_routes_at_the_base(tmp_path, adapter):
    model = random_model(config(adapters=(adapter,)))
    checkpoint = save_checkpoint(model, tmp_path / "c")
    graph = session(export_bundle(checkpoint, tmp_path / "b", bits=32) / "decoder.onnx")
    ids = text(6)
    for i, route in enumerate(ROUTES):
        runner = DecoderRunner(graph, model.config.decoder)
        expected = reference_logits(model, ids, route if route == adapter else "none")
        np.testing.assert_allclose(runner.run(ids, None, i), expected, atol=TOLERANCE)


@pytest.mark.parametrize("adapters", [("vision", "speech"), ("vision",), ("speech",)])
def test_wide_models_skip_their_branches_at_each_projection(tmp_path, monkeypatch, adapters):
    monkeypatch.setattr(lora, "_WIDE", 0)
    model = random_model(config(adapters=adapters))
    bundle = export_bundle(save_checkpoint(model, tmp_path / "c"), tmp_path / "b", bits=32)
    nodes = onnx.load(bundle / "decoder.onnx", load_external_data=False).graph.node
    layers = model.config.decoder.num_layers
    assert [node.op_type for node in nodes].count("If") == 4 * layers
    assert [node.op_type for node in nodes].count("GroupQueryAttention") == layers  # a single stack
    ids = text(9)
    for i, route in enumerate(ROUTES):
        runner = DecoderRunner(session(bundle / "decoder.onnx"), model.config.decoder)
        expected = reference_logits(model, ids, route if route in adapters else "none")
        got = np.concatenate([runner.run(ids[:6], None, i), *(runner.run([t], None, i) for t in ids[6:])])
        np.testing.assert_allclose(got, expected, atol=TOLERANCE)
