"""Graphs for GPUs: a kernel for every node, nothing that a provider would misread, and the CPU's numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import small_models

from phirt.bundle.files import load_manifest, verify_bundle
from phirt.bundle.lora import DECODER, LORA_DECODER
from phirt.bundle.manifest import SOME_ROWS
from phirt.bundle.variants import as_variant
from phirt.errors import ConfigError
from phirt.generate.engine import Engine
from phirt.generate.sequence import Adapter, MediaSpan, Prompt
from phirt.generator import Generator
from phirt.runtime.session import Session, SessionConfig
from phirt_export.exporter import export_bundle
from phirt_export.graphs.builder import OPSET
from phirt_export.targets import known_targets, read_target
from phirt_export.targets.passes import float_weights, gathered_rows, plain_products
from phirt_export.targets.passes.float16 import to_float16
from phirt_export.variants.adding import add_targets
from phirt_export.variants.emitter import Emitter
from phirt_export.variants.kernels import KERNELS, objections, weights_in_branches
from phirt_export.variants.ranges import open_plain
from phirt_export.variants.rewriter import rewritten

GPUS = ("cuda", "directml", "webgpu", "webgpu_float32")
ADAPTERS = ("none", "vision", "speech")


@pytest.fixture(scope="module", params=["own choice of bits", "four bits"])
def bundle(request, talking_checkpoint: Path, tmp_path_factory) -> Path:
    """One with matrices of 4, 6 and 8 bits whose inputs are rounded twice, and one of 4 bits with biases."""
    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    settings = {} if request.param == "own choice of bits" else {"bits": 4, "method": "rtn"}
    return export_bundle(talking_checkpoint, folder, targets=["cpu", *GPUS], **settings)


def test_there_is_a_target_for_every_provider_whose_kernels_are_known() -> None:
    providers = {read_target(name).providers[0] for name in known_targets()}
    assert set(KERNELS) <= providers
    assert all(read_target(name).static is None for name in GPUS)


@pytest.mark.parametrize("target", GPUS)
def test_every_node_has_a_kernel_that_takes_its_attributes(bundle: Path, target: str) -> None:
    variant = load_manifest(bundle).variants[target]
    assert set(variant.graphs) == {DECODER, LORA_DECODER, "vision", "speech"}
    for spec in variant.graphs.values():
        model = ir.load(bundle / spec.file)
        assert list(objections(model, variant.providers[0])) == []
        assert weights_in_branches(model) == []


def test_the_cpus_own_graphs_would_be_refused(bundle: Path) -> None:
    """The table tells: these are what the passes are there for."""
    model = ir.load(bundle / "decoder.onnx")
    said = "\n".join(objections(model, "DmlExecutionProvider"))
    assert "does not take packed queries, keys and values" in said
    assert "no kernel for GatherBlockQuantized" in said and "no kernel for NonZero" in said
    vision = "\n".join(objections(ir.load(bundle / "vision.onnx"), "WebGpuExecutionProvider"))
    assert "does not take a mask of keys" in vision
    assert weights_in_branches(model)


def test_decoders_take_and_give_float16_and_share_the_bundles_codes(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    for target in ("cuda", "directml", "webgpu"):
        spec = manifest.variants[target].graphs[DECODER]
        assert {one.dtype for one in (*spec.inputs, *spec.outputs)} == {"float16", "int64", "int32"}
        media = next(one for one in spec.inputs if one.name == "media_features")
        assert media.shape[0] == SOME_ROWS
        assert set(spec.data) == {"decoder.data", f"{target}.data"}
        model = ir.load(bundle / spec.file)
        kinds = {v.const_value.dtype for v in model.graph.initializers.values()}
        assert ir.DataType.FLOAT not in kinds and ir.DataType.UINT8 in kinds
        own, shared = (manifest.files[name].size for name in (f"{target}.data", "decoder.data"))
        assert own < shared
    assert all(detail == "ok" for _, detail in verify_bundle(bundle))


def exact(bundle: Path):
    """The CPU's decoder with its weights multiplied as float32."""
    plain = rewritten(ir.load(bundle / "decoder.onnx"), float_weights.RULES)
    return plain


def engines(bundle: Path, target: str) -> tuple[Engine, Engine]:
    """One of the variant on the CPU, and one of the same weights in float32."""
    manifest = load_manifest(bundle)
    view = as_variant(manifest, target)
    exact_view = as_variant(manifest, "webgpu_float32")
    return (
        Engine(Session(view, DECODER, SessionConfig()), view),
        Engine(Session(exact_view, DECODER, SessionConfig()), exact_view),
    )


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_in_float32_the_variant_is_the_float32_decoder(bundle: Path, adapter: str) -> None:
    """The passes change no number: against matrices multiplied as they are, with media and every adapter."""
    manifest = load_manifest(bundle)
    view = as_variant(manifest, "webgpu_float32")
    rows = np.random.default_rng(0).standard_normal((3, manifest.geometry.hidden_size)).astype(np.float32)
    ids = np.array([40, 1, 1, 41, 42, 1, 43], np.int64)
    route = ADAPTERS.index(adapter)
    session = open_plain(rewritten(ir.load(bundle / "decoder.onnx"), float_weights.RULES))
    shape = (1, manifest.geometry.num_kv_heads, 16, manifest.geometry.head_dim)
    feeds = {
        "input_ids": ids[None], "media_features": rows, "route": np.array([route]),
        "num_logits": np.array([1]), "seqlens_k": np.array([6], np.int32),
        "total_sequence_length": np.array([7], np.int32),
    }  # fmt: skip
    feeds |= {
        f"past_key_values.{i}.{part}": np.zeros(shape, np.float32)
        for i in range(manifest.geometry.num_layers)
        for part in ("key", "value")
    }
    expected = session.run(["logits"], feeds)[0][0, 0]
    spans = (MediaSpan(1, rows[:2], "a"), MediaSpan(5, rows[2:], "b"))
    found = Engine(Session(view, DECODER, SessionConfig()), view).prefill_prompt(
        Prompt(ids, spans, Adapter(adapter))
    )
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["cuda", "directml", "webgpu"])
def test_float16_is_close_to_float32(bundle: Path, target: str) -> None:
    half, whole = engines(bundle, target)
    ids = np.random.default_rng(1).integers(20, 300, 48).astype(np.int64)
    for adapter in ADAPTERS:
        prompt = Prompt(ids, (), Adapter(adapter))
        found = np.stack([row.copy() for row in half.score_prompt(prompt, 0)])
        expected = np.stack([row.copy() for row in whole.score_prompt(prompt, 0)])
        assert found.dtype == np.float32
        error = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
        assert error < (0.01 if adapter == "none" else 0.1), error  # random adapters magnify what is rounded


@pytest.mark.parametrize("target", ["directml", "webgpu"])
def test_a_users_adapter_is_taken_in_float16(bundle: Path, target: str) -> None:
    from phirt.bundle.lora import NO_LORA
    from phirt.runtime.lora import LoraInputs

    view = as_variant(load_manifest(bundle), target)
    session = Session(view, LORA_DECODER, SessionConfig())
    inputs = LoraInputs(session.spec, view.geometry, {"digest": NO_LORA})
    prompt = Prompt(np.arange(20, 34, dtype=np.int64))
    found = Engine(session, view, loras=inputs).prefill_prompt(prompt)
    plain = Engine(Session(view, DECODER, SessionConfig()), view).prefill_prompt(prompt)
    np.testing.assert_allclose(found, plain, atol=0.02 * np.abs(plain).max())


@pytest.mark.parametrize("target", GPUS)
def test_pictures_and_recordings_go_through(bundle: Path, target: str) -> None:
    """Encoders compute in float16 and speak float32; a picture of several crops has masked patches."""
    from PIL import Image

    from phirt_quant import samples

    own = Generator(load_manifest(bundle), SessionConfig())
    other = Generator(as_variant(load_manifest(bundle), target), SessionConfig())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 40, 3)).astype(np.uint8))
    for kind, source in (("image", picture), ("audio", samples.clips()[0])):
        rule = next(rule for rule in own.manifest.rules if kind in rule.modalities)
        features = [one.encoder.features(one.encoder.prepare(kind, source), rule) for one in (own, other)]
        assert features[1].dtype == np.float32
        assert np.corrcoef(features[0].reshape(-1), features[1].reshape(-1))[0, 1] > 0.999
    own.close(), other.close()


def test_rows_of_a_table_are_unpacked_by_elementary_operators() -> None:
    """4, 8 and 2 bits, against the codes' own meaning."""
    generator = np.random.default_rng(0)
    for bits in (2, 4, 8):
        g = Emitter("table", OPSET)
        codes = generator.integers(0, 256, (6, 64 * bits // 8)).astype(np.uint8)
        scales = generator.random((6, 2)).astype(np.float32)
        ids = g.input("ids", "int64", [1, 3])
        made = g.GatherBlockQuantized(
            g.constant(codes, "codes"), ids, g.constant(scales, "scales"), bits=bits, block_size=32,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        g.output(made, "rows", "float32", [1, 3, 64])
        model = rewritten(g.finished("test"), gathered_rows.RULES)
        assert "GatherBlockQuantized" not in {node.op_type for node in model.graph}
        found = open_plain(model).run(None, {"ids": np.array([[4, 0, 4]])})[0]
        whole = float_weights.unpacked(codes, bits).reshape(6, 2, 32) * scales[:, :, None]
        np.testing.assert_allclose(found[0], whole.reshape(6, 64)[[4, 0, 4]], atol=1e-6)


def test_inputs_are_padded_to_whole_blocks_and_the_bias_is_added_behind() -> None:
    g = Emitter("product", OPSET)
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (5, 2, 16)).astype(np.uint8)
    scales, bias = generator.random((5, 2)).astype(np.float32), generator.random(5).astype(np.float32)
    x = g.input("x", "float32", [1, 3, 40])
    y = g.MatMulNBits(
        x, g.constant(codes, "codes"), g.constant(scales, "scales"), None, None, g.constant(bias, "bias"),
        N=5, K=40, bits=4, block_size=32, accuracy_level=0,
    )  # fmt: skip
    g.output(y, "y", "float32", [1, 3, 5])
    model = g.finished("test")
    plain = rewritten(model, plain_products.RULES)
    assert [node.op_type for node in plain.graph] == ["Pad", "MatMulNBits", "Add"]
    feeds = {"x": generator.standard_normal((1, 3, 40)).astype(np.float32)}
    expected = open_plain(model).run(None, feeds)[0]
    np.testing.assert_allclose(open_plain(plain).run(None, feeds)[0], expected, atol=1e-4)


def test_what_is_too_large_for_float16_is_the_largest_that_it_holds() -> None:
    g = Emitter("large", OPSET)
    x = g.input("x", "float32", [2])
    g.output(g.Add(x, g.constant(np.array([1e9, -1.0], np.float32), "large")), "y", "float32", [2])
    model = to_float16(g.finished("test"))
    found = open_plain(model).run(None, {"x": np.zeros(2, np.float16)})[0]
    assert found.dtype == np.float16 and found.tolist() == [65504.0, -1.0]


def test_a_sliding_window_is_refused_for_directml(talking_checkpoint: Path, tmp_path: Path) -> None:
    from phirt_export.targets.passes import separate_attention

    bundle = export_bundle(talking_checkpoint, tmp_path / "bundle", bits=8, method="rtn")
    model = ir.load(bundle / "decoder.onnx")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "GroupQueryAttention":
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", 4)
    with pytest.raises(ConfigError, match="DirectML's attention knows no sliding window"):
        rewritten(model, separate_attention.RULES)


def test_inputs_are_bound_anew_where_they_are_copied(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in this process's memory is copied to a device when it is bound, not when it runs."""
    view = as_variant(load_manifest(bundle), "webgpu_float32")
    session = Session(view, DECODER, SessionConfig())
    made: list[object] = []
    binding = session.binding
    monkeypatch.setattr(session, "binding", lambda: made.append(1) or binding())
    engine = Engine(session, view)
    engine.prefill([30, 31])
    before = len(made)
    for token in (32, 33, 34):
        engine.decode_step(token)
    assert len(made) == before + 1  # the CPU reads the same memory again
    session.device = dataclasses.replace(session.device, providers=(("WebGpuExecutionProvider", {}),))
    for token in (35, 36, 37):
        engine.decode_step(token)
    engine._runs.forget_bindings()
    before = len(made)
    for token in (38, 39, 40):
        engine.decode_step(token)
    assert len(made) == before + 3


def test_unquantized_bundles_have_variants_too(plain) -> None:
    """MatMul and a Gemm over the table; in float16 there is nothing to share."""
    folder = add_targets(plain.bundle, plain.bundle.parent / "halves", ["cpu", "webgpu"])
    view = as_variant(load_manifest(folder), "webgpu")
    found = Engine(Session(view, DECODER, SessionConfig()), view).prefill([20, 21, 22])
    runner = small_models.DecoderRunner(
        small_models.session(plain.bundle / "decoder.onnx"), plain.model.config.decoder
    )
    expected = runner.run([20, 21, 22])[-1]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_targets_that_are_dropped_leave_no_files(plain, tmp_path: Path) -> None:
    """Of the CPU's graphs and of a variant that the bundle had; nothing more can be made from the rest."""
    both = add_targets(plain.bundle, tmp_path / "both", ["cpu", "webgpu"])
    had = load_manifest(both)
    alone = add_targets(both, tmp_path / "alone", ["cuda"])
    manifest = load_manifest(alone)
    assert {said for _, said in verify_bundle(alone)} == {"ok"}
    assert set(manifest.variants) == {"cuda"} and not manifest.graphs
    used = {spec.file for spec in manifest.variants["cuda"].graphs.values()}
    assert {path.name for path in alone.glob("**/*.onnx")} == {Path(name).name for name in used}
    dropped = {spec.file for spec in (*had.graphs.values(), *had.variants["webgpu"].graphs.values())}
    assert not any((alone / name).exists() for name in dropped)
    with pytest.raises(ConfigError, match="has no graphs for the CPU, from which others are made"):
        add_targets(alone, tmp_path / "more", ["webgpu"])


def test_settings_of_weights_are_refused_for_a_bundle(plain, tmp_path: Path) -> None:
    for settings in ({"kv": "int8"}, {"name": "other"}, {"adapter_bits": 4}, {"bits_per_weight": 5.0}):
        (name,) = settings
        with pytest.raises(ConfigError, match=f"^{name} cannot be set for a bundle"):
            export_bundle(plain.bundle, tmp_path / "out", targets=["cpu", "cuda"], **settings)
