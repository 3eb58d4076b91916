"""Qualcomm's HTP by the emulator of onnxruntime-qnn: nothing of the layers, the head or the encoders on the
CPU.

The emulator takes a third of a second for a token. An environment of its own runs this:

    pip install -e ".[dev,qnn]" && pytest tests/targets
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from nano_variants import EXAMPLES, STATIC, variant_of

import phirt
from phirt.bundle.files import load_manifest
from phirt.errors import ProviderError
from phirt.generate.engine import Engine
from phirt.generate.static_runs import StaticGraphs
from phirt.generator import Generator
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig
from phirt_export.variants.adding import add_targets

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="onnxruntime-qnn is not installed: pip install onnxruntime-qnn, which brings the emulator",
)
QNN = "QNNExecutionProvider"


@pytest.fixture(scope="module")
def htp() -> SessionConfig:
    return SessionConfig(Device.named("qnn"))


@pytest.fixture(scope="module")
def on_htp(eight_bits: Path, htp):
    generator = Generator(variant_of(eight_bits, "qnn"), htp)
    yield generator
    generator.close()


def share(engine: Engine, held_out) -> float:
    counts = [one.agreement(engine) for one in held_out]
    return sum(right for right, _ in counts) / sum(all_ for _, all_ in counts)


def test_decoder_vision_and_audio_run_wholly_on_the_htp(on_htp, held_out) -> None:
    """With int8 weights it says what the CPU says; adapters switch between runs of the same graphs."""
    assert share(on_htp.new_engine(), held_out) >= 0.98
    for kind, name in (("image", "shapes.png"), ("audio", "seven.flac")):
        media = on_htp.encoder.prepare(kind, EXAMPLES / name)
        rule = next(rule for rule in on_htp.manifest.rules if kind in rule.modalities)
        features = on_htp.encoder.features(media, rule)
        known = (
            next(one for one in held_out if one.prompt.adapter.name == rule.adapter).prompt.spans[0].features
        )
        assert np.corrcoef(features.reshape(-1), known.reshape(-1))[0, 1] > 0.998
    placements = on_htp.placements
    assert set(placements) == {"prefill", "decode", "head", "vision", "speech"}
    assert {provider for one in placements.values() for provider in one.nodes} == {QNN}


def test_int4_weights_in_blocks(four_bits: Path, htp, held_out) -> None:
    manifest = variant_of(four_bits, "qnn")
    engine = Engine(StaticGraphs.open(manifest, htp), manifest)
    assert share(engine, held_out) >= 0.95


def test_a_chat_runs_on_the_htp(eight_bits: Path, nano) -> None:
    with phirt.load(eight_bits, providers="qnn") as model:
        text = "What is water made of?"
        settings = {"max_new_tokens": 4, "temperature": 0.0}
        assert model.chat().send(text, **settings).text() == nano.chat().send(text, **settings).text()


def test_compiled_ahead_it_reloads_and_computes_the_same(eight_bits: Path, tmp_path: Path, htp) -> None:
    """A binary for a named chip: no compiler when it is opened, and the same logits to the last bit."""
    folder = add_targets(eight_bits, tmp_path / "compiled", ["cpu", "qnn"], options=STATIC, chips=["sm8650"])
    manifest = load_manifest(folder)
    assert set(manifest.variants) == {"qnn", "qnn_sm8650"}
    ahead = manifest.variants["qnn_sm8650"]
    assert ahead.options == {"htp_arch": "75", "soc_model": "57"}
    for name in ("prefill", "decode", "head", "vision", "speech"):
        graph = ir.load(folder / ahead.graphs[name].file).graph
        assert [node.op_type for node in graph] == ["EPContext"]
        (binary,) = ahead.graphs[name].data
        assert (folder / binary).stat().st_size > 100_000
    logits, seconds = [], []
    for variant in ("qnn", "qnn_sm8650"):
        begin = time.perf_counter()
        with_variant = variant_of(folder, variant)
        engine = Engine(StaticGraphs.open(with_variant, htp), with_variant)
        seconds.append(time.perf_counter() - begin)
        logits.append([engine.prefill(range(10, 40)).copy(), engine.decode_step(77).copy()])
    np.testing.assert_array_equal(logits[0], logits[1])
    assert seconds[1] < seconds[0] / 4


def test_a_graph_that_the_htp_does_not_take_is_an_error(eight_bits: Path, htp) -> None:
    """No silent fall back: the CPU's own decoder holds operators that the HTP has not."""
    manifest = variant_of(eight_bits, "qnn")
    own = dataclasses.replace(manifest, graphs={"decoder": dataclasses.replace(
        load_manifest(eight_bits).graphs["decoder"], target="qnn")})  # fmt: skip
    with pytest.raises(ProviderError, match="does not run the decoder graph as a whole"):
        Session(own, "decoder", htp)


def test_a_layer_of_phi_4_minis_width_compiles(tmp_path: Path) -> None:
    """3072 wide, 8192 inside, int4 in blocks, one token: 4.3 bits a weight."""
    path = Path(__file__).parents[1] / "benchmarks" / "npu_width.py"
    spec = importlib.util.spec_from_file_location("npu_width", path)
    width = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(width)
    source, geometry = width.decoder(tmp_path, 1)
    model = width.build_layers(source, geometry, (), width.StaticShapes(64, 1024), 1)
    watched = width.Observer(model)
    watched.run(width.feeds(geometry, width.StaticShapes(64, 1024), 1))
    device = Device.named([("qnn", {"htp_arch": "75", "soc_model": "57"})])
    whole = width.quantized(model, watched.observed(), width.WeightScheme(4))
    seconds, size = width.compiled(whole, tmp_path, device)
    print(f"compiled in {seconds:.1f} s, {size / 1e6:.1f} MB")
    assert 4.0 < 8 * size / 100.7e6 < 4.6
