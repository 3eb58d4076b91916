"""nano's decoder graph with inputs for a user's adapter, made without its checkpoint.

The exporter builds graphs from shapes and writes weights on the way. Here it builds over the data file that
is there: each piece is placed where the export has placed it, and nothing is written. That the plain graph
comes out byte by byte as it lies in the bundle shows that all pieces are where the new graph looks for them.

    python tests/nano/lora_graph.py FOLDER      adds the graph to a copy of the bundle

The bundle's manifest then says that conversations held before go on: every other graph is as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from phirt.bundle.files import load_manifest
from phirt.bundle.lora import DECODER, LORA_DECODER
from phirt.bundle.manifest import MANIFEST_NAME, Manifest
from phirt.fields import write_dataclass
from phirt_export.bundle import describe
from phirt_export.checkpoint import expected_shapes
from phirt_export.formats import BundleFormats, choose_formats
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import DataFile, Part, Piece
from phirt_export.graphs.decoder import build_decoder
from phirt_export.graphs.linear import WeightStore
from phirt_export.reference import AdapterConfig, DecoderConfig, ModelConfig, RopeConfig, TokenConfig

RANK = 32


class WrittenFile(DataFile):
    """A finished data file: pieces are placed in it and not written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        self._arrays = {}

    def append(self, key: str, parts: Sequence[Part], note: Callable[[], tuple[float, ...]] = tuple) -> Piece:
        extents = self._place([length for _, length in parts])
        self._end = extents[-1].offset + extents[-1].length
        return Piece(extents, (0.0, 0.0))


class Shapes:
    """A weight source that knows shapes only."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_shapes(config)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, *self._shapes[name][1:]), np.float32)

    def tensor(self, name: str) -> np.ndarray:
        return np.zeros(self._shapes[name], np.float32)


def config(manifest: Manifest) -> ModelConfig:
    """What the decoder was built from."""
    g, rope, tokens = manifest.geometry, manifest.geometry.rope, manifest.tokens
    encoders = manifest.encoders
    return ModelConfig(
        DecoderConfig(
            g.num_layers, g.hidden_size, g.num_heads, g.num_kv_heads, g.head_dim, g.intermediate_size,
            g.vocab_size, 1e-5,
            RopeConfig(
                rope.theta, rope.rotary_dim, rope.original_context, g.context, rope.short_factor,
                rope.long_factor,
            ),
        ),
        TokenConfig(
            tokens.bos, tokens.pad, tokens.eos, encoders["vision"].placeholder, encoders["speech"].placeholder
        ),
        None,
        None,
        {name: AdapterConfig(RANK, 2.0 * RANK) for name in manifest.adapters},
    )  # fmt: skip


def build(folder: Path) -> dict[str, tuple[bytes, GraphBuilder]]:
    """Bytes and builder of both decoder graphs over the data file in `folder`."""
    manifest = load_manifest(folder)
    model, q = config(manifest), manifest.quantization
    bits = ("embedding_bits", "adapter_bits", "encoder_bits")
    today = choose_formats(q["bits"], q["block_size"], *(q[name] for name in bits), q["method"])
    # The bundle was made when all scales were float32.
    formats = BundleFormats(*(dataclasses.replace(form, scale_type="float32") for form in today.parts))
    data = WrittenFile(manifest.path("decoder.data"))
    first = WeightStore(GraphBuilder(DECODER, data), Shapes(model))
    stores = {DECODER: first, LORA_DECODER: first.onto(GraphBuilder(LORA_DECODER, data))}
    built = {}
    for name, store in stores.items():
        build_decoder(
            store, model, formats.base, formats.adapter, formats.embedding, None, name == LORA_DECODER
        )
        assert data.size == manifest.files["decoder.data"].size
        built[name] = (ir.to_proto(store.g.model(manifest.producer)).SerializeToString(), store.g)
    return built


def add(folder: Path) -> None:
    """Write the graph into `folder`, and name it in the manifest."""
    built = build(folder)
    assert built[DECODER][0] == (folder / "decoder.onnx").read_bytes()
    raw, g = built[LORA_DECODER]
    file = f"{LORA_DECODER}.onnx"
    (folder / file).write_bytes(raw)
    path = folder / MANIFEST_NAME
    before = path.read_bytes()
    document = json.loads(before)
    entry = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    document["files"] = dict(sorted({**document["files"], file: entry}.items()))
    inputs = [write_dataclass(spec) for spec in describe(g.inputs)]
    graph = {**document["graphs"][DECODER], "file": file, "inputs": inputs}
    document["graphs"] = {DECODER: document["graphs"][DECODER], LORA_DECODER: graph} | document["graphs"]
    document["continues"] = [hashlib.sha256(before).hexdigest()]
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    add(Path(sys.argv[1]))
