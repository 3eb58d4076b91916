"""The graph of an EfficientNet-Lite tower: one square picture in, rows of decoder width out.

The counterpart of `reference/efficientnet.py`. Pointwise convolutions, most of the weights, are stored in 8
bits where linears are quantized. Knows nothing of files or of how pictures are fitted.
"""

from __future__ import annotations

import onnx_ir as ir

from phirt_export.graphs.encoder import EncoderParts
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.reference.config import PhotoConfig
from phirt_export.reference.efficientnet import POOL_SIDE, POOL_STEP, padding

_PREFIX = "model.embed_tokens_extend.photo_embed"


def build_photo(store: WeightStore, config: PhotoConfig, hidden_size: int, form: WeightFormat) -> None:
    """Append the encoder to the store's graph; inputs and outputs are those of the bundle's contract."""
    g, parts = store.g, EncoderParts(store, form, _PREFIX)
    pixels = g.input("pixel_values", "float32", [1, 3, config.size, config.size])
    maps = _trunk(parts, config, pixels)
    windows = g.AveragePool(maps, kernel_shape=[POOL_SIDE] * 2, strides=[POOL_STEP] * 2, name="windows")
    flat = g.constant([config.channels, -1], "flat", "int64")
    rows = g.Transpose(g.Reshape(windows, flat), perm=[1, 0], name="rows")
    whole = g.Reshape(g.GlobalAveragePool(maps), g.constant([1, config.channels], "one", "int64"), name="all")
    words = g.constant([config.words, hidden_size], "words", "int64")
    found = []
    for n in range(len(config.classes)):
        seen = g.Softmax(parts.linear(whole, f"classifiers.{n}", f"classifier.{n}"), axis=-1)
        names = store.linear(seen, f"{_PREFIX}.names.{n}.weight", form, f"names.{n}")
        found.append(g.Reshape(names, words))
    features = g.Concat(*found, parts.projector(rows, "projection", "projection"), axis=0, name="joined")
    g.output(features, "image_features", "float32", [config.num_tokens, hidden_size])


def _trunk(parts: EncoderParts, config: PhotoConfig, pixels: ir.Value) -> ir.Value:
    size, x = config.size, _clipped(parts, _conv(parts, pixels, "stem", config.size, 3, 2), "stem")
    size = -(-size // 2)
    for n, block in enumerate(config.blocks):
        with parts.g.scope(f"blocks.{n}"):
            inner, name = x, f"blocks.{n}"
            if block.expansion > 1:
                inner = _clipped(parts, _conv(parts, x, f"{name}.expand", size, 1, 1), "expand")
            groups = block.inputs * block.expansion
            inner = _conv(parts, inner, f"{name}.depthwise", size, block.kernel, block.step, groups)
            inner = _clipped(parts, inner, "depthwise")
            size = -(-size // block.step)
            y = _conv(parts, inner, f"{name}.project", size, 1, 1)
            x = parts.g.Add(x, y, name="sum") if block.is_residual else y
    return _clipped(parts, _conv(parts, x, "head", size, 1, 1), "head")


def _clipped(parts: EncoderParts, x: ir.Value, name: str) -> ir.Value:
    """relu6."""
    g = parts.g
    return g.Clip(
        x, g.constant(0.0, "zero", "float32"), g.constant(6.0, "six", "float32"), name=f"{name}.clipped"
    )


def _conv(
    parts: EncoderParts, x: ir.Value, layer: str, size: int, kernel: int, step: int, groups: int = 1
) -> ir.Value:
    g = parts.g
    stored = parts.filters(f"trunk.{layer}", coded=kernel == 1)
    bias = g.constant(parts.store.source.tensor(f"{_PREFIX}.trunk.{layer}.bias"), f"{layer}.bias")
    before, after = padding(size, kernel, step)
    return g.Conv(
        x, stored, bias, kernel_shape=[kernel] * 2, strides=[step] * 2, group=groups,
        pads=[before, before, after, after], name=layer,
    )  # fmt: skip
