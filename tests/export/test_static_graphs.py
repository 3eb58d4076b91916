"""Graphs of one size: decoder and encoders cut from a bundle's own, in float32 and in whole numbers."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

import phirt
from phirt.bundle.files import load_manifest, verify_bundle
from phirt.bundle.manifest import Manifest, StaticShapes
from phirt.bundle.static import DECODE, EMBED, GATE, HEAD, LAYER_INPUTS, PREFILL, STATIC_GRAPHS, layer_names
from phirt.bundle.variants import as_variant
from phirt.encoders.windows import CONTEXT_TOKENS, windows
from phirt.errors import AdapterError, BundleError, ConfigError
from phirt.generate.engine import Engine
from phirt.generate.sequence import Adapter, MediaSpan, Prompt
from phirt.generator import Generator
from phirt.runtime.session import Session, SessionConfig
from phirt_export.exporter import export_bundle
from phirt_export.targets.passes import elementary
from phirt_export.targets.passes.quantize import Observed, WeightScheme, _by_block, quantized
from phirt_export.variants import static_encoders
from phirt_export.variants.adding import add_targets
from phirt_export.variants.ranges import Observer, open_plain
from phirt_export.variants.rewriter import rewritten
from phirt_export.variants.sizes import StaticOptions
from phirt_export.variants.static_decoder import DecoderSource, build_embed, build_head, build_layers
from phirt_export.variants.weight_only import with_stored_weights

TOKENS, WINDOW = 8, 32
STATIC = StaticShapes(TOKENS, WINDOW)
ROUTES = {0: "none", 1: "vision", 2: "speech"}
# What Qualcomm's HTP takes in 16 bits of what is used here (tried on its emulator, onnxruntime-qnn 2.7).
HTP = {
    "Add", "Concat", "Conv", "DequantizeLinear", "Gather", "Gelu", "LayerNormalization", "MatMul", "Mul",
    "QuantizeLinear", "RMSNormalization", "ReduceMean", "Relu", "Reshape", "RotaryEmbedding", "Sigmoid",
    "Slice", "Softmax", "Squeeze", "Split", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip


class Cut:
    """A bundle's decoder as graphs of one size in float32, run one after the other."""

    def __init__(self, bundle: Path) -> None:
        self.manifest = load_manifest(bundle)
        source = self.source = DecoderSource.of(ir.load(bundle / "decoder.onnx"))
        geometry, adapters = self.manifest.geometry, list(self.manifest.adapters)
        self.models = {
            PREFILL: build_layers(source, geometry, adapters, STATIC, TOKENS),
            DECODE: build_layers(source, geometry, adapters, STATIC, 1),
            HEAD: build_head(source, geometry),
            EMBED: build_embed(source, geometry, STATIC),
        }
        self.sessions = {name: open_plain(model) for name, model in self.models.items()}

    def logits(
        self, parts: list[tuple[list[int], np.ndarray | None]], route: int, sessions=None
    ) -> np.ndarray:
        """Of all positions, after running ids and features part by part."""
        sessions, geometry = sessions or self.sessions, self.manifest.geometry
        shape = (1, geometry.num_kv_heads, WINDOW, geometry.head_dim)
        past = {name: np.zeros(shape, np.float32) for name in layer_names(geometry.num_layers)}
        found, start = [], 0
        for ids, rows in parts:
            graph = DECODE if len(ids) == 1 else PREFILL
            padded = np.zeros((1, 1 if graph == DECODE else TOKENS), np.int64)
            padded[0, : len(ids)] = ids
            none = np.zeros((0, geometry.hidden_size), np.float32)
            feeds = {"input_ids": padded, "media_features": none if rows is None else rows,
                     "position": np.array([start], np.int64)}  # fmt: skip
            feeds = dict(zip(LAYER_INPUTS, sessions[EMBED].run(None, feeds), strict=True))
            for name in self.manifest.adapters:
                feeds[f"{GATE}{name}"] = np.array([ROUTES[route] == name], np.float32)
            feeds |= {f"past_key_values.{name}": array for name, array in past.items()}
            names = [one.name for one in sessions[graph].get_outputs()]
            made = dict(zip(names, sessions[graph].run(None, feeds), strict=True))
            for name, array in past.items():
                array[:, :, start : start + len(ids)] = made[f"present.{name}"][:, :, : len(ids)]
            for i in range(len(ids)):
                found.append(sessions[HEAD].run(None, {"hidden": made["hidden"][:, i : i + 1]})[0][0, 0])
            start += len(ids)
        return np.stack(found)


PARTS = [([20, 21, 22, 23, 24, 25, 26, 27], None), ([28, 1, 1, 29], "rows"), ([30], None), ([31], None)]


def with_rows(parts, hidden: int):
    rows = np.random.default_rng(1).standard_normal((2, hidden)).astype(np.float32)
    return [(ids, rows if given else None) for ids, given in parts]


@pytest.mark.parametrize("route", ROUTES)
def test_graphs_of_one_size_compute_what_the_decoder_does(exported, route: int) -> None:
    """Padded prefills, a medium inside one, decode steps, every adapter; weights in float32."""
    cut = Cut(exported.bundle)
    parts = with_rows(PARTS, cut.manifest.geometry.hidden_size)
    runner = small_models.DecoderRunner(
        small_models.session(exported.bundle / "decoder.onnx"), exported.model.config.decoder, WINDOW
    )
    expected = np.concatenate([runner.run(ids, rows, route) for ids, rows in parts])
    np.testing.assert_allclose(cut.logits(parts, route), expected, atol=2e-4, rtol=1e-4)


def test_a_sliding_window_is_in_the_mask(plain) -> None:
    import dataclasses

    cut = Cut(plain.bundle)
    source = dataclasses.replace(cut.source, sliding_window=3)
    embed = open_plain(build_embed(source, cut.manifest.geometry, STATIC, -9.0))
    feeds = {"input_ids": np.zeros((1, 2), np.int64), "position": np.array([5], np.int64),
             "media_features": np.zeros((0, cut.manifest.geometry.hidden_size), np.float32)}  # fmt: skip
    mask = embed.run(None, feeds)[3][0, 0]
    group = cut.manifest.geometry.num_heads // cut.manifest.geometry.num_kv_heads
    assert mask.shape == (group * 2, WINDOW + 2)
    seen = [set(np.flatnonzero(row == 0)) for row in mask]
    assert seen == [{3, 4, WINDOW}, {4, WINDOW, WINDOW + 1}] * group  # positions 3, 4, 5 and 4, 5, 6
    assert set(np.unique(mask)) == {0.0, -9.0}


def sizes_of(model: ir.Model) -> set[str]:
    return {
        type(size).__name__ for value in (*model.graph.inputs, *model.graph.outputs) for size in value.shape
    }


def test_layers_are_of_one_size_in_operators_of_the_standard(plain) -> None:
    models = Cut(plain.bundle).models
    for name in (PREFILL, DECODE, HEAD):
        nodes = list(models[name].graph)
        assert {node.op_type for node in nodes} <= HTP and {node.domain for node in nodes} == {""}
        assert sizes_of(models[name]) == {"int"}
        assert models[name].graph.opset_imports[""] == 23
    # Two adapters at four projections of each layer, behind a gate each.
    gated = [node for node in models[DECODE].graph if node.name.endswith(".gated")]
    layers = plain.model.config.decoder.num_layers
    assert sum("lora" in n.name or ".A.gated" in n.name for n in gated) == 2 * 4 * layers
    rewritten_kinds = {node.op_type for node in rewritten(models[DECODE], elementary.RULES).graph}
    assert not rewritten_kinds & {"RMSNormalization", "RotaryEmbedding", "Gelu"}


@pytest.fixture(scope="module")
def measured(plain):
    """The plain bundle's layers, and what a few sequences make of them."""
    cut = Cut(plain.bundle)
    watched, last = Observer(cut.models[PREFILL]), Observer(cut.models[HEAD])

    class Recording:
        def __init__(self, observer, model):
            self.observer, self.names = observer, [value.name for value in model.graph.outputs]

        def get_outputs(self):
            return [type("Output", (), {"name": name}) for name in self.names]

        def run(self, _, feeds):
            made = self.observer.run(feeds)
            return [made[name] for name in self.names]

    sessions = cut.sessions | {
        PREFILL: Recording(watched, cut.models[PREFILL]),
        HEAD: Recording(last, cut.models[HEAD]),
    }
    generator = np.random.default_rng(0)
    for route in ROUTES:
        for _ in range(4):
            ids = generator.integers(5, 160, (3, TOKENS)).tolist()
            cut.logits([(part, None) for part in ids], route, sessions)
    scores = {name: limits for name, limits in watched.ranges.items() if name.endswith(".scores.out")}
    masked = -20.0 - 1.1 * max(high - low for low, high in scores.values())
    watched.ranges["attention_mask"] = masked, 0.0
    for name, (low, high) in scores.items():
        watched.ranges[name.replace(".scores.", ".masked.")] = low + masked, high
    return cut, watched.observed(), last.observed(), masked


@pytest.mark.parametrize(("bits", "most"), [(8, 0.06), (4, 0.5)])
def test_whole_numbers_change_logits_little(measured, bits: int, most: float) -> None:
    cut, seen, heads, masked = measured
    scheme = WeightScheme(bits, block=16)
    models = {
        PREFILL: quantized(cut.models[PREFILL], seen, scheme),
        HEAD: quantized(cut.models[HEAD], heads, WeightScheme(8)),
    }
    kinds = collections.Counter(node.op_type for node in models[PREFILL].graph)
    assert set(kinds) <= HTP
    for value in (*models[PREFILL].graph.inputs, *models[PREFILL].graph.outputs):
        is_cache = value.name.startswith(("past_key_values.", "present."))
        assert value.dtype == (ir.DataType.UINT16 if is_cache else ir.DataType.FLOAT)
    sessions = {name: open_plain(model) for name, model in models.items()}
    embed = open_plain(build_embed(cut.source, cut.manifest.geometry, STATIC, masked))
    ids = [int(i) for i in np.random.default_rng(7).integers(5, 160, TOKENS)]
    feeds = {"input_ids": np.array([ids]), "position": np.zeros(1, np.int64),
             "media_features": np.zeros((0, cut.manifest.geometry.hidden_size), np.float32)}  # fmt: skip
    feeds = dict(zip(LAYER_INPUTS, embed.run(None, feeds), strict=True))
    shape = (1, cut.manifest.geometry.num_kv_heads, WINDOW, cut.manifest.geometry.head_dim)
    feeds |= {f"past_key_values.{n}": np.zeros(shape, np.uint16) for n in layer_names(3)}
    feeds |= {f"{GATE}{name}": np.zeros(1, np.float32) for name in cut.manifest.adapters}
    hidden = sessions[PREFILL].run(["hidden"], feeds)[0]
    found = np.stack(
        [sessions[HEAD].run(None, {"hidden": hidden[:, i : i + 1]})[0][0, 0] for i in range(TOKENS)]
    )
    expected = cut.logits([(ids, None)], 0)
    error = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
    assert error < most
    weights = [
        v.const_value.dtype for v in models[PREFILL].graph.initializers.values() if v.name.endswith(".codes")
    ]
    assert (ir.DataType.INT4 in weights) == (bits == 4) and ir.DataType.INT8 in weights


def test_blocks_of_four_bits_have_steps_from_1_to_15() -> None:
    """The form that the HTP takes: codes times (a step times a scale of the output)."""
    matrix = np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32)
    matrix[:, 3] *= 100
    matrix[:32, 5] = 0
    codes, steps, scales = _by_block(matrix, 32, None)
    assert codes.dtype.name == "int4" and steps.dtype == np.uint8 and steps.shape == (2, 24)
    assert steps.min() >= 1 and steps.max() <= 15
    whole = codes.astype(np.float32).reshape(2, 32, 24) * (steps[:, None] * scales)
    # 4 bits with a free scale for each block lose about 0.9 % of a normal distribution's energy.
    lost = ((whole.reshape(64, 24) - matrix) ** 2).sum(axis=0) / (matrix**2).sum(axis=0)
    assert lost.max() < 0.02 and np.median(lost) < 0.011


def test_a_picture_in_crops_is_what_it_is_at_once(plain) -> None:
    manifest = load_manifest(plain.bundle)
    generator = Generator(manifest, SessionConfig())
    source = ir.load(plain.bundle / "vision.onnx")
    view = one_encoder(manifest, "vision", lambda c, width: static_encoders.build_crop(source, c, width), {})
    for size in ((90, 30), (31, 64), (32, 32)):
        picture = np.random.default_rng(size[0]).integers(0, 255, (*size, 3)).astype(np.uint8)
        from PIL import Image

        media = generator.encoder.prepare("image", Image.fromarray(picture), "high")
        assert len(media.inputs["pixel_values"]) >= 2
        inputs = dict(media.inputs)
        expected = generator.encoder.features(media, generator.manifest.rules[0])
        np.testing.assert_allclose(view(inputs, 0), expected, atol=2e-3)
    generator.close()


@pytest.mark.parametrize(("tokens", "frames"), [(10, 180), (10, 75), (10, 80), (8, 61), (8, 3)])
def test_a_recording_in_windows_is_what_it_is_at_once(plain, tokens: int, frames: int) -> None:
    """Several windows with what fills up the last; one that is not full; a graph smaller than the window."""
    manifest = load_manifest(plain.bundle)
    source = ir.load(plain.bundle / "speech.onnx")
    view = one_encoder(
        manifest, "speech", lambda c, width: static_encoders.build_window(source, c, tokens, width),
        {"tokens": tokens},
    )  # fmt: skip
    mel = np.random.default_rng(frames).standard_normal((1, frames, 80)).astype(np.float32)
    session = small_models.session(plain.bundle / "speech.onnx")
    for projector in (0, 1):
        feeds = {"audio_embeds": mel, "projector": np.array([projector], np.int64)}
        expected = session.run(None, feeds)[0]
        np.testing.assert_allclose(view({"audio_embeds": mel}, projector), expected, atol=2e-4)


def one_encoder(manifest: Manifest, name: str, build, more: dict):
    """Runs the kind for graphs of one size over the graph that `build` makes, in float32."""
    from phirt.bundle.manifest import GraphSpec
    from phirt.encoders import phi4mm_crops, phi4mm_windows
    from phirt.encoders.phi4mm_audio import AudioConstants
    from phirt.encoders.phi4mm_image import ImageConstants
    from phirt.fields import Fields, read_dataclass
    from phirt_export.bundle import describe

    constants, kind = {
        "vision": (ImageConstants, phi4mm_crops.Encoder), "speech": (AudioConstants, phi4mm_windows.Encoder),
    }[name]  # fmt: skip
    given = dict(manifest.encoders[name].constants)
    read = read_dataclass(constants, Fields(given, "constants", ConfigError, ""))
    model = build(read, manifest.geometry.hidden_size)
    assert {node.op_type for node in model.graph} <= HTP and sizes_of(model) == {"int"}
    session = open_plain(model)
    spec = GraphSpec("graph", (), "qnn", describe(model.graph.inputs), describe(model.graph.outputs))
    encoder = kind(Fields(given | more, "constants", BundleError, ""), spec, manifest.geometry.hidden_size)
    runner = type("Runner", (), {"run": lambda self, feeds: session.run(None, dict(feeds))})()
    return lambda inputs, projector: encoder.run(runner, inputs, projector)


def test_windows_take_the_frames_that_convolutions_reach() -> None:
    frames = np.arange(50, dtype=np.float32)[:, None] + np.ones((50, 2), np.float32)
    first, second = windows(frames, 4, 8, whole=True)
    margin = CONTEXT_TOKENS * 8
    assert (first.tokens, second.tokens) == (4, 3)
    assert first.inputs["audio_embeds"].shape == (1, 4 * 8 + 2 * margin, 2)
    np.testing.assert_array_equal(first.inputs["audio_embeds"][0, margin:, 0], frames[: 32 + margin, 0])
    np.testing.assert_array_equal(
        second.inputs["audio_embeds"][0, : 18 + margin, 0], frames[32 - margin :, 0]
    )
    assert (
        first.inputs["frames_mask"].sum() == 32 + margin and second.inputs["frames_mask"].sum() == 18 + margin
    )
    assert not first.inputs["key_bias"].any() and not second.inputs["key_bias"].any()
    (only,) = windows(frames[:9], 4, 8, whole=True)
    assert only.tokens == 2 and only.inputs["key_bias"].reshape(-1).tolist() == [0, 0, -1e4, -1e4]


# Bundles with a variant.


@pytest.fixture(scope="module")
def both(talking_checkpoint: Path, tmp_path_factory) -> Path:
    """A checkpoint exported for the CPU and for Qualcomm's NPUs."""
    folder = tmp_path_factory.mktemp("both") / "bundle"
    static = StaticOptions(prefill=16, window=128, audio_tokens=10)
    return export_bundle(
        talking_checkpoint, folder, targets=["cpu", "qnn"], bits=8, method="rtn", static=static
    )


def test_a_bundle_for_both_shares_the_token_table(both: Path) -> None:
    manifest = load_manifest(both)
    variant = manifest.variants["qnn"]
    assert set(variant.graphs) == {*STATIC_GRAPHS, "vision", "speech"}
    assert variant.static == StaticShapes(16, 128) and variant.providers == ("QNNExecutionProvider",)
    assert variant.graphs[EMBED].target == "cpu" and "decoder.data" in variant.graphs[EMBED].data
    assert {graph.target for name, graph in variant.graphs.items() if name != EMBED} == {"qnn"}
    assert all(detail == "ok" for _, detail in verify_bundle(both))
    table = manifest.geometry.vocab_size * manifest.geometry.hidden_size
    external = {
        tensor.location
        for tensor in (v.const_value for v in ir.load(both / "qnn_embed.onnx").graph.initializers.values())
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes >= table
    }
    assert external == {"decoder.data"}
    for name in (PREFILL, DECODE, HEAD, "vision", "speech"):
        onnx.checker.check_model(str(both / variant.graphs[name].file))


@pytest.fixture(scope="module")
def on_cpu(both: Path):
    """The variant for the NPU, run by the CPU: its numbers, without the device."""
    generator = Generator(as_variant(load_manifest(both), "qnn"), SessionConfig())
    yield generator
    generator.close()


def prompt_of(length: int, adapter: str = "none", seed: int = 0) -> Prompt:
    ids = np.random.default_rng(seed).integers(20, 300, length).astype(np.int64)
    return Prompt(ids, (), Adapter(adapter))


@pytest.mark.parametrize("adapter", ROUTES.values())
def test_the_engine_runs_graphs_of_one_size(both: Path, on_cpu: Generator, adapter: str) -> None:
    """Close to the CPU's own graphs; and a prompt in pieces, reused, forked and stepped is one prompt."""
    manifest = load_manifest(both)
    own = Engine(Session(manifest, "decoder", SessionConfig()), manifest)
    prompt, engine = prompt_of(41, adapter), on_cpu.new_engine()
    logits = engine.prefill_prompt(prompt).copy()
    expected = own.prefill_prompt(prompt)
    assert np.corrcoef(logits, expected)[0, 1] > 0.97  # random weights, whose adapters change much
    longer = Prompt(np.append(prompt.ids, [33, 34]), (), prompt.adapter)
    assert engine.reusable(longer) == 41
    stepped = [engine.decode_step(token).copy() for token in (33, 34)][-1]
    again = on_cpu.new_engine().prefill_prompt(longer)
    np.testing.assert_allclose(stepped, again, atol=0.05 * np.abs(again).max())
    forked = engine.fork(20)
    np.testing.assert_allclose(forked.prefill_prompt(prompt), logits, atol=0.05 * np.abs(logits).max())
    kept = {name: array.copy() for name, array in engine.cache.export()}
    restored = on_cpu.new_engine()
    restored.restore(engine.cached, kept, long_regime=False)
    np.testing.assert_array_equal(restored.decode_step(50), engine.decode_step(50))


def test_adapters_switch_from_one_run_to_the_next(on_cpu: Generator) -> None:
    """The gates are inputs: the same opened graphs serve every adapter."""
    engine, fresh = on_cpu.new_engine(), {}
    for adapter in ROUTES.values():
        fresh[adapter] = on_cpu.new_engine().prefill_prompt(prompt_of(9, adapter)).copy()
    assert not np.allclose(fresh["none"], fresh["vision"], atol=1e-2)
    for adapter in ("speech", "none", "vision", "none"):
        np.testing.assert_array_equal(engine.prefill_prompt(prompt_of(9, adapter)), fresh[adapter])


def test_positions_are_scored_one_by_one(on_cpu: Generator) -> None:
    prompt = prompt_of(23)
    scored = [row.copy() for row in on_cpu.new_engine().score_prompt(prompt, 5)]
    assert len(scored) == 18
    np.testing.assert_array_equal(scored[-1], on_cpu.new_engine().prefill_prompt(prompt))


def test_media_stand_at_their_placeholders(both: Path, on_cpu: Generator) -> None:
    manifest = load_manifest(both)
    rows = (
        np.random.default_rng(3).standard_normal((3, manifest.geometry.hidden_size)).astype(np.float32) * 0.2
    )
    ids = np.array([40, 41, 1, 1, 1, 42, 43], np.int64)
    prompt = Prompt(ids, (MediaSpan(2, rows, "key"),), Adapter("vision"))
    own = Engine(Session(manifest, "decoder", SessionConfig()), manifest)
    found = on_cpu.new_engine().prefill_prompt(prompt)
    assert np.corrcoef(found, own.prefill_prompt(prompt))[0, 1] > 0.98


def test_the_window_is_the_context(on_cpu: Generator) -> None:
    from phirt.errors import ContextError

    assert on_cpu.manifest.geometry.context == 128
    engine = on_cpu.new_engine()
    engine.prefill_prompt(prompt_of(127))
    engine.decode_step(30)
    assert engine.length == 128
    with pytest.raises(ContextError, match="128 positions is full"):
        engine.decode_step(31)
    with pytest.raises(ContextError, match="129 positions are needed"):
        on_cpu.new_engine().prefill_prompt(prompt_of(129))


def test_a_chat_with_media_runs_on_graphs_of_one_size(on_cpu: Generator) -> None:
    from phirt.model import Model
    from phirt_quant import samples

    model = Model(on_cpu)
    answer = model.chat().send(
        "What is it?", images=[samples.pictures()[0]], audio=[samples.clips()[0]], max_new_tokens=3
    )
    assert len(answer.result.token_ids) == 3 or answer.result.finish_reason == "stop"


def test_a_users_adapter_is_refused(both: Path, tmp_path: Path) -> None:
    from phirt.bundle.user_adapters import read_adapters

    with pytest.raises(AdapterError, match="for qnn are of one size and take no adapters"):
        read_adapters(as_variant(load_manifest(both), "qnn"), {"mine": tmp_path})


def test_a_bundle_for_the_npu_alone_has_nothing_else(both: Path, tmp_path: Path) -> None:
    """Made from another bundle, without its checkpoint; with four bits."""
    before = sorted(path.name for path in both.iterdir())
    folder = add_targets(both, tmp_path / "alone", ["qnn"], options=StaticOptions(4, 8, 64, 10))
    assert sorted(path.name for path in both.iterdir()) == before
    manifest = load_manifest(folder)
    assert not manifest.graphs and set(manifest.variants) == {"qnn"}
    assert not {"decoder.onnx", "decoder.data", "vision.data"} & {path.name for path in folder.iterdir()}
    assert all(detail == "ok" for _, detail in verify_bundle(folder))
    with pytest.raises(BundleError, match="no graphs for CPUExecutionProvider, only for: qnn"):
        phirt.load(folder)
    engine = Generator(as_variant(manifest, "qnn"), SessionConfig()).new_engine()
    assert np.isfinite(engine.prefill_prompt(prompt_of(12))).all()
    bits = {v.const_value.dtype.name for v in ir.load(folder / "qnn_decode.onnx").graph.initializers.values()}
    assert {"INT4", "INT8", "UINT8"} <= bits


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": ["qnn"], "static": StaticOptions(window=2048)}, "the window has at most 1024"),
        ({"targets": ["qnn"], "static": StaticOptions(prefill=200, window=100)}, "a prefill no more than it"),
        ({"targets": ["qnn"], "static": StaticOptions(bits=6)}, "weights of 6 bits .* choose 4 or 8"),
        ({"targets": ["cpu"], "chips": ["sm8650"]}, "compiled for 'sm8650'; accepted: none"),
        ({"targets": ["qnn"], "chips": ["sm1"]}, "compiled for 'sm1'; accepted: sc8380xp, .*sm8850"),
        ({"targets": ["cpu", "toaster"]}, "target 'toaster' cannot be built; choose from cpu, .*qnn"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_work(
    talking_checkpoint: Path, tmp_path: Path, settings, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        export_bundle(talking_checkpoint, tmp_path / "bundle", **settings)
    assert not (tmp_path / "bundle").exists()


def test_weights_alone_in_few_bits_for_machines_that_compute_in_floats(plain) -> None:
    """The form for OpenVINO: norms, rotations and gelu taken apart, matrices as int8 codes."""
    cut = Cut(plain.bundle)
    model = with_stored_weights(rewritten(cut.models[PREFILL], elementary.RULES), WeightScheme(8))
    kinds = {node.op_type for node in model.graph}
    assert "QuantizeLinear" not in kinds and "DequantizeLinear" in kinds
    assert not kinds & {"RMSNormalization", "RotaryEmbedding", "Gelu"}
    sessions = cut.sessions | {PREFILL: open_plain(model)}
    parts = with_rows(PARTS[:2], cut.manifest.geometry.hidden_size)
    expected, found = cut.logits(parts, 0), cut.logits(parts, 0, sessions)
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.05
    apart = cut.sessions | {PREFILL: open_plain(rewritten(cut.models[PREFILL], elementary.RULES))}
    for route in ROUTES:
        np.testing.assert_allclose(cut.logits(parts, route, apart), cut.logits(parts, route), atol=1e-3)


def test_ranges_are_those_of_every_tensor(plain) -> None:
    cut = Cut(plain.bundle)
    watched = Observer(cut.models[HEAD])
    rows = np.random.default_rng(0).standard_normal((4, cut.manifest.geometry.hidden_size)).astype(np.float32)
    logits = [watched.run({"hidden": row[None, None]})["logits"] for row in rows]
    assert watched.ranges["logits"] == (min(map(np.min, logits)), max(map(np.max, logits)))
    assert watched.ranges["hidden"] == (rows.min(), rows.max())
    np.testing.assert_allclose(
        next(iter(watched.importance().values())), np.sqrt((rows.astype(float) ** 2).mean(axis=0)), rtol=1e-5
    )


def test_zero_is_a_number_of_sixteen_bits(measured) -> None:
    """So a gate of 0, padding and masked keys add nothing at all."""
    cut, seen, _, _ = measured
    model = quantized(cut.models[DECODE], Observed(seen.ranges), WeightScheme())
    values = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    for name in cut.manifest.adapters:
        scale, zero = values[f"{GATE}{name}.scale"], values[f"{GATE}{name}.zero"]
        assert (np.round(0 / scale) + zero - zero) * scale == 0
    assert json.dumps([float(values["cos.scale"])])
