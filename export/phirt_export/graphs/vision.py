"""The image encoder graph: crops of one picture in, rows of decoder width out.

The tower is SigLIP as `vision_siglip_navit.py` beside Phi-4-multimodal's weights has it, the assembly that of
its `modeling_phi4mm.py`. Knows patches or stem, encoder layers, pooling, assembly and projection. Knows
nothing of files or of how crops are cut.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.encoder import EncoderParts
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.reference.config import VisionConfig

_PREFIX = "model.embed_tokens_extend.image_embed"
_TOWER = "img_processor"
_BATCH_NORM_EPSILON = 1e-5


def build_vision(store: WeightStore, config: VisionConfig, hidden_size: int, form: WeightFormat) -> None:
    """Append the encoder to the store's graph; inputs and outputs are those of the bundle's contract."""
    g, patches = store.g, config.grid**2
    pixels = g.input("pixel_values", "float32", ["crops", 3, config.crop_size, config.crop_size])
    mask = g.input("patch_mask", "bool", ["crops", patches])
    positions = g.input("position_ids", "int64", ["crops", patches])
    crop_grid = g.input("crop_grid", "int64", [2])
    feature_grid = g.input("feature_grid", "int64", [2])
    parts = EncoderParts(store, form, _PREFIX)
    x = _embed(parts, config, pixels, positions)
    keys = g.Cast(mask, to=int(ir.DataType.INT32), name="keys")
    for i in range(config.num_layers):
        with g.scope(f"layers.{i}"):
            x = _layer(parts, config, f"{_TOWER}.encoder.layers.{i}", x, keys)
    rows = _assemble(parts, config, _pool(parts, config, x), crop_grid, feature_grid)
    features = parts.projector(rows, "img_projection", "projection")
    g.output(features, "image_features", "float32", ["rows", hidden_size])


def _embed(parts: EncoderParts, config: VisionConfig, pixels: ir.Value, positions: ir.Value) -> ir.Value:
    """Patch vectors plus position embedding, [crops, patches, hidden]."""
    g = parts.g
    with g.scope("embed"):
        if config.stem_channels:
            maps = _stem(parts, config, pixels)
        else:
            name = f"{_PREFIX}.{_TOWER}.embeddings.patch_embedding"
            weight = g.constant(parts.store.source.tensor(f"{name}.weight"), "patch.weight")
            bias = parts.store.vector(f"{name}.bias", "patch.bias")
            side = config.patch_size
            maps = g.Conv(pixels, weight, bias, strides=[side, side], kernel_shape=[side, side], name="patch")
        shape = g.constant([0, config.hidden_size, config.grid**2], "flat.shape", "int64")
        vectors = g.Transpose(g.Reshape(maps, shape, name="flat"), perm=[0, 2, 1], name="vectors")
        table = parts.store.source.tensor(f"{_PREFIX}.{_TOWER}.embeddings.position_embedding.weight")
        return g.Add(vectors, g.Gather(g.constant(table, "table"), positions, name="positions"), name="sum")


def _stem(parts: EncoderParts, config: VisionConfig, pixels: ir.Value) -> ir.Value:
    """The residual convolutional stem, batch norms folded into the convolutions before them."""
    g, x = parts.g, pixels
    for i in range(len(config.stem_channels)):
        with g.scope(f"stem.{i}"):
            stage = f"{_PREFIX}.{_TOWER}.embeddings.stem.{i}"
            x = g.Relu(_folded_conv(parts, x, f"{stage}.down", f"{stage}.down_norm", 2, "down"))
            if i > 0:
                y = g.Relu(_folded_conv(parts, x, f"{stage}.conv1", f"{stage}.norm1", 1, "conv1"))
                y = _folded_conv(parts, y, f"{stage}.conv2", f"{stage}.norm2", 1, "conv2")
                x = g.Relu(g.Add(x, y))
    return x


def _folded_conv(parts: EncoderParts, x: ir.Value, conv: str, norm: str, stride: int, name: str) -> ir.Value:
    """3x3 convolution followed by batch norm in inference: w·s and b - mean·s with s = gamma / sqrt(var +
    eps).
    """
    g, tensor = parts.g, parts.store.source.tensor
    scale = tensor(f"{norm}.weight") / np.sqrt(
        tensor(f"{norm}.running_var") + np.float32(_BATCH_NORM_EPSILON)
    )
    weight = g.constant(tensor(f"{conv}.weight") * scale[:, None, None, None], f"{name}.weight")
    bias = g.constant(tensor(f"{norm}.bias") - tensor(f"{norm}.running_mean") * scale, f"{name}.bias")
    return g.Conv(
        x, weight, bias, name=name, kernel_shape=[3, 3], strides=[stride, stride], pads=[1, 1, 1, 1]
    )


def _layer(parts: EncoderParts, config: VisionConfig, layer: str, x: ir.Value, keys: ir.Value) -> ir.Value:
    """One pre-LayerNorm block on [crops, patches, hidden]."""
    g, eps = parts.g, config.norm_eps
    normed = parts.layer_norm(x, f"{layer}.layer_norm1", eps, "attn.norm")
    q, k, v = (parts.linear(normed, f"{layer}.self_attn.{p}_proj", f"attn.{p}") for p in "qkv")
    attended = parts.attention((q, k, v), config.num_heads, "attn.attend", keys=keys)
    x = g.Add(x, parts.linear(attended, f"{layer}.self_attn.out_proj", "attn.out"), name="attn.sum")
    normed = parts.layer_norm(x, f"{layer}.layer_norm2", eps, "mlp.norm")
    hidden = g.Gelu(parts.linear(normed, f"{layer}.mlp.fc1", "mlp.fc1"), approximate="tanh", name="mlp.gelu")
    return g.Add(x, parts.linear(hidden, f"{layer}.mlp.fc2", "mlp.fc2"), name="mlp.sum")


def _pool(parts: EncoderParts, config: VisionConfig, x: ir.Value) -> ir.Value:
    """Average over pool x pool patches: [crops, patches, hidden] -> [crops, g, g, hidden]."""
    g, pool = parts.g, config.pool
    side = config.grid // pool
    shape = g.constant([0, side, pool, side, pool, config.hidden_size], "pool.shape", "int64")
    axes = g.constant([2, 4], "pool.axes", "int64")
    return g.ReduceMean(g.Reshape(x, shape, name="pool.cells"), axes, keepdims=0, name="pool")


def _assemble(
    parts: EncoderParts, config: VisionConfig, pooled: ir.Value, crop_grid: ir.Value, feature_grid: ir.Value
) -> ir.Value:
    """Stitched crops cut to (U, V), the global separator, the global view: [U·V + U + 1 + g² + g, hidden]."""
    g, width, side = parts.g, config.hidden_size, config.grid // config.pool
    tensor = parts.store.source.tensor

    def ints(values: list[int], name: str) -> ir.Value:
        return g.constant(values, name, "int64")

    with g.scope("assemble"):
        first = g.Slice(pooled, ints([0], "zero"), ints([1], "one"), ints([0], "axis"), name="global")
        crops = g.Slice(
            pooled, ints([1], "one"), ints([np.iinfo(np.int64).max], "end"), ints([0], "axis"), name="crops"
        )
        grid = g.Concat(crop_grid, ints([side, side, width], "cell"), axis=0, name="grid.shape")
        grid = g.Transpose(g.Reshape(crops, grid, name="grid"), perm=[0, 2, 1, 3, 4], name="grid.rows")
        canvas = g.Mul(crop_grid, ints([side], "side"), name="canvas.size")
        canvas = g.Concat(canvas, ints([width], "width"), axis=0, name="canvas.shape")
        stitched = g.Reshape(grid, canvas, name="canvas")
        cut = g.Slice(stitched, ints([0, 0], "origin"), feature_grid, ints([0, 1], "axes"), name="cut")
        separator = g.constant(tensor(f"{_PREFIX}.sub_GN").reshape(1, 1, width), "sub_separator")
        flat = ints([-1, width], "flat.shape")

        def with_separators(rows: ir.Value, name: str) -> ir.Value:
            height = g.Shape(rows, start=0, end=1, name=f"{name}.height")
            shape = g.Concat(height, ints([1, width], "separator.shape"), axis=0, name=f"{name}.column.shape")
            column = g.Expand(separator, shape, name=f"{name}.column")
            return g.Reshape(g.Concat(rows, column, axis=1, name=f"{name}.separated"), flat, name=name)

        square = g.Squeeze(first, ints([0], "axis"), name="global.square")
        middle = g.constant(tensor(f"{_PREFIX}.glb_GN").reshape(1, width), "global_separator")
        parts_in_order = [with_separators(cut, "sub"), middle, with_separators(square, "glb")]
        return g.Concat(*parts_in_order, axis=0, name="rows")
