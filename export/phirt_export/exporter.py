"""From a checkpoint folder to a bundle: `export_bundle`.

Knows which graphs a model needs, in which formats, and the order of work. Weights stream: one tensor is read,
quantized and written at a time. Knows nothing of how nodes are laid out.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.bundle import (
    CARD_NAME,
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    GraphFiles,
    describe,
    producer,
    staged_bundle,
    write_manifest,
)
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import DataFile
from phirt_export.graphs.decoder import build_decoder
from phirt_export.graphs.linear import FLOAT_BITS, WeightFormat, WeightSource, WeightStore
from phirt_export.graphs.speech import build_speech
from phirt_export.graphs.vision import build_vision
from phirt_export.reference import ModelConfig

TARGETS = ("cpu",)
# Wide models lose little with long blocks and decode 1.6 times faster; narrow ones need the finer scales.
_WIDE = 1024
_WIDE_BLOCK, _NARROW_BLOCK = 128, 32

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class BundleFormats:
    """Weight formats of a bundle's parts: base projections with the embedding, LoRA matrices, encoders."""

    base: WeightFormat
    adapter: WeightFormat
    encoder: WeightFormat

    @classmethod
    def of(
        cls, bits: int, block_size: int, adapter_bits: int, encoder_bits: int, method: str
    ) -> BundleFormats:
        """The formats; 32 base bits mean an unquantized bundle, so the other parts follow."""
        if bits == FLOAT_BITS:
            adapter_bits = encoder_bits = FLOAT_BITS
        base, adapter, encoder = (
            WeightFormat(b, block_size, method) for b in (bits, adapter_bits, encoder_bits)
        )
        return cls(base, adapter, encoder)

    def manifest_entry(self) -> dict[str, int | str]:
        """What the manifest says about quantization."""
        return {
            "bits": self.base.bits,
            "block_size": self.base.block_size,
            "adapter_bits": self.adapter.bits,
            "encoder_bits": self.encoder.bits,
            "method": self.base.method,
        }


def default_block_size(config: ModelConfig) -> int:
    """Block size that suits the decoder's width."""
    return _WIDE_BLOCK if config.decoder.hidden_size >= _WIDE else _NARROW_BLOCK


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    targets: Sequence[str] = ("cpu",),
    bits: int = 4,
    block_size: int | None = None,
    adapter_bits: int = 8,
    encoder_bits: int = 8,
    method: str = "rtn",
    name: str | None = None,
    description: str = "",
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint folder (config.json, model.safetensors, tokenizer.json, chat_template.jinja) as a
    bundle.

    Args:
        checkpoint: the folder; a MODEL_CARD.md in it is taken along.
        output: the bundle's folder; an existing bundle is replaced once the new one is complete.
        targets: what the graphs are for; `cpu` is built.
        bits: 4, 8 or 32 (unquantized) for embedding and base projections.
        block_size: weights that share a scale, a power of two; None chooses 128 for wide models and 32 for
            narrow ones.
        adapter_bits: 4, 8 or 32 for LoRA matrices.
        encoder_bits: 4, 8 or 32 for the linears of the encoders.
        method: how scales are chosen: `rtn` or `mse`.
        name: the bundle's name; the checkpoint folder's by default.
        description: one line about the model.
        progress: called with (tensor name, tensors done, tensors in all) as weights are written.

    Returns:
        `output`.

    Raises:
        ConfigError: unsupported settings, a checkpoint that does not fit its configuration, or an output in
            use.
    """
    if tuple(targets) != TARGETS:
        raise ConfigError(
            f"targets {', '.join(targets) or '(none)'} cannot be built; choose from {', '.join(TARGETS)}"
        )
    opened = Checkpoint(checkpoint)
    config = opened.config
    formats = BundleFormats.of(
        bits, block_size or default_block_size(config), adapter_bits, encoder_bits, method
    )
    for required in (TOKENIZER_NAME, TEMPLATE_NAME):
        if not (checkpoint / required).is_file():
            raise ConfigError(
                f"{checkpoint} holds no {required}, which a bundle needs; put it beside the weights"
            )
    with staged_bundle(output) as staging:
        graphs = write_graphs(staging, config, opened, formats, progress)
        for extra in (TOKENIZER_NAME, TEMPLATE_NAME, CARD_NAME):
            if (checkpoint / extra).is_file():
                shutil.copyfile(checkpoint / extra, staging / extra)
        write_manifest(
            staging,
            config,
            graphs,
            name=name or checkpoint.absolute().name,
            description=description,
            target=targets[0],
            quantization=formats.manifest_entry(),
        )
    return output


def write_graphs(
    folder: Path,
    config: ModelConfig,
    source: WeightSource,
    formats: BundleFormats,
    progress: Progress | None = None,
) -> dict[str, GraphFiles]:
    """Write decoder and, where the model has them, encoder graphs into `folder`; returns them by manifest
    name.
    """
    width = config.decoder.hidden_size
    parts: dict[str, Callable[[WeightStore], None]] = {
        "decoder": lambda store: build_decoder(store, config, formats.base, formats.adapter)
    }
    if (vision := config.vision) is not None:
        parts["vision"] = lambda store: build_vision(store, vision, width, formats.encoder)
    if (audio := config.audio) is not None:
        parts["speech"] = lambda store: build_speech(store, audio, width, formats.encoder)
    done = 0
    total = sum(len(shape) == 2 for shape in expected_shapes(config).values())

    def count(tensor: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(tensor, min(done, total), total)

    return {part: _write_graph(folder, part, source, build, count) for part, build in parts.items()}


def _write_graph(
    folder: Path,
    part: str,
    source: WeightSource,
    build: Callable[[WeightStore], None],
    on_stored: Callable[[str], None],
) -> GraphFiles:
    with DataFile(folder / f"{part}.data") as data:
        g = GraphBuilder(part, data)
        build(WeightStore(g, source, on_stored))
    file = f"{part}.onnx"
    ir.save(g.model(producer()), folder / file)
    return GraphFiles(file, data.path.name, describe(g.inputs), describe(g.outputs))
