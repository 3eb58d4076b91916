"""Layers of Phi-4-mini's width (3072, 24 heads, 8 of keys, 8192 inside) compiled for Qualcomm's HTP: time and
size.

Random weights; int4 in blocks and int8, one token and a prefill. Needs onnxruntime-qnn, whose compiler runs
anywhere:

    python tests/benchmarks/npu_width.py [LAYERS] [CHIP]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from phirt.bundle.manifest import Geometry, Rope, StaticShapes
from phirt.bundle.static import layer_names
from phirt.runtime.device import Device
from phirt_export.checkpoint import expected_shapes
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import DataFile
from phirt_export.graphs.decoder import build_decoder
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.reference import DecoderConfig, ModelConfig, RopeConfig, TokenConfig
from phirt_export.targets import read_target
from phirt_export.targets.passes.quantize import WeightScheme, quantized
from phirt_export.variants.ranges import Observer
from phirt_export.variants.static_decoder import DecoderSource, build_layers
from phirt_export.variants.storing import store_graph

WIDTH, HEADS, KV_HEADS, HEAD, INSIDE, PAIRS = 3072, 24, 8, 128, 8192, 48
WINDOW, PREFILL = 1024, 64


class RandomWeights:
    """A weight source of normal numbers, the same for the same tensor."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_shapes(config)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        generator = np.random.default_rng([start, *name.encode()])
        shape = (stop - start, *self._shapes[name][1:])
        return (generator.standard_normal(shape) * WIDTH**-0.5).astype(np.float32)

    def tensor(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        return np.ones(shape, np.float32) if len(shape) == 1 else self.rows(name, 0, shape[0])


def decoder(folder: Path, layers: int) -> tuple[DecoderSource, Geometry]:
    """A decoder graph of these layers, with a small vocabulary."""
    factors = (1.0,) * PAIRS
    rope = RopeConfig(10000.0, 2 * PAIRS, 4096, 4096, factors, factors)
    sizes = DecoderConfig(layers, WIDTH, HEADS, KV_HEADS, HEAD, INSIDE, 512, 1e-5, rope)
    config = ModelConfig(sizes, TokenConfig(0, 0, (0,), None, None), None, None, {})
    with DataFile(folder / "decoder.data") as data:
        form = WeightFormat(8, 128, "rtn")
        store = WeightStore(GraphBuilder("decoder", data), RandomWeights(config))
        build_decoder(store, config, form, form)
    ir.save(store.g.model("benchmark"), folder / "decoder.onnx")
    manifest_rope = Rope(10000.0, 2 * PAIRS, 4096, factors, factors)
    geometry = Geometry(layers, HEADS, KV_HEADS, HEAD, WIDTH, INSIDE, 512, 4096, manifest_rope)
    return DecoderSource.of(ir.load(folder / "decoder.onnx")), geometry


def feeds(geometry: Geometry, static: StaticShapes, tokens: int) -> dict[str, np.ndarray]:
    """Numbers like those of a prompt's first tokens."""
    generator, group = np.random.default_rng(0), HEADS // KV_HEADS
    angles = generator.random((1, tokens, PAIRS)).astype(np.float32)
    mask = np.full((1, 1, group * tokens, static.window + tokens), -40.0, np.float32)
    mask[..., static.window :] = np.where(np.tri(tokens), 0, -40.0).repeat(group, 0).astype(np.float32)
    shape = (1, KV_HEADS, static.window, HEAD)
    return {
        "inputs_embeds": generator.standard_normal((1, tokens, WIDTH)).astype(np.float32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "attention_mask": mask,
    } | {f"past_key_values.{name}": np.zeros(shape, np.float32) for name in layer_names(geometry.num_layers)}


def compiled(model: ir.Model, folder: Path, device: Device) -> tuple[float, int]:
    """Seconds to compile a graph, and bytes of the binary."""
    path = folder / "graph.onnx"
    with DataFile(folder / "graph.data") as data:
        store_graph(model, path, data)
    settings = device.session_options(spinning=False)
    for key, value in (("enable", "1"), ("embed_mode", "0"), ("file_path", str(folder / "ahead.onnx"))):
        settings.add_session_config_entry(f"ep.context_{key}", value)
    begin = time.perf_counter()
    device.open(str(path), settings, strict=True)
    seconds = time.perf_counter() - begin
    made = [file for file in folder.iterdir() if file.suffix == ".bin"]
    size = sum(file.stat().st_size for file in made)
    for file in (*made, folder / "ahead.onnx"):
        file.unlink()
    return seconds, size


def main(layers: int = 1, chip: str = "sm8650") -> None:
    """Prints a line for each graph."""
    profile = read_target("qnn")
    device = Device.named([(profile.providers[0], profile.compiles_for[chip])])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, geometry = decoder(folder, layers)
        static = StaticShapes(PREFILL, WINDOW)
        watched = Observer(build_layers(source, geometry, (), static, PREFILL))
        watched.run(feeds(geometry, static, PREFILL))
        for bits in (4, 8):
            for tokens in (1, PREFILL):
                model = build_layers(source, geometry, (), static, tokens)
                model = quantized(model, watched.observed(), WeightScheme(bits))
                seconds, size = compiled(model, folder, device)
                attention = WIDTH * (HEADS + 2 * KV_HEADS) * HEAD + WIDTH * HEADS * HEAD
                weights = layers * (attention + 3 * WIDTH * INSIDE)
                print(
                    f"{layers} layers, int{bits}, {tokens} tokens, {chip}: {seconds:.1f} s, "
                    f"{size / 1e6:.1f} MB, {8 * size / weights:.2f} bits a weight",
                    flush=True,
                )


if __name__ == "__main__":
    main(*(int(word) if word.isdigit() else word for word in sys.argv[1:]))
