"""The speech encoder graph: log-mel frames of one clip in, one row of decoder width per 80 ms out.

The conformer is that of `speech_conformer_encoder.py` beside Phi-4-multimodal's weights. Knows subsampling,
windows, conformer blocks and the two projectors. Knows nothing of recordings. All layers work on [windows,
tokens, channels]: pointwise convolutions are linears there, only the depthwise one transposes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.encoder import EncoderParts
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.reference.config import AudioConfig

PROJECTORS = ("speech", "vision")  # in the order in which the input `projector` numbers them
_PREFIX = "model.embed_tokens_extend.audio_embed"
_TOWER = "encoder"


def build_speech(store: WeightStore, config: AudioConfig, hidden_size: int, form: WeightFormat) -> None:
    """Append the encoder to the store's graph; inputs and outputs are those of the bundle's contract."""
    g = store.g
    frames = g.input("audio_embeds", "float32", [1, "frames", config.num_mels])
    projector = g.input("projector", "int64", [1])
    parts = EncoderParts(store, form, _PREFIX)
    x = _subsample(parts, config, frames)
    length = g.Shape(x, start=1, end=2, name="tokens")
    x, window = _fold(parts, config, x, length)
    bias = _relative_bias(parts, config, window)
    for i in range(config.num_layers):
        with g.scope(f"layers.{i}"):
            x = _layer(parts, config, f"{_TOWER}.encoders.{i}", x, bias)
    with g.scope("unfold"):
        rows = g.Reshape(x, g.constant([-1, config.hidden_size], "shape", "int64"), name="rows")
        zero, axis = g.constant([0], "zero", "int64"), g.constant([0], "axis", "int64")
        rows = g.Slice(rows, zero, length, axis, name="valid")
    is_speech = g.Equal(
        projector, g.constant([PROJECTORS.index("speech")], "speech.id", "int64"), name="is_speech"
    )
    (features,) = g.if_else(
        is_speech,
        lambda: [parts.projector(rows, "audio_projection.speech", "projection.speech")],
        lambda: [parts.projector(rows, "audio_projection.vision", "projection.vision")],
        "projection",
    )
    g.output(features, "audio_features", "float32", ["rows", hidden_size])


def _subsample(parts: EncoderParts, config: AudioConfig, frames: ir.Value) -> ir.Value:
    """[1, frames, mels] -> [1, ceil(frames / 8), hidden]: three halvings, then a linear over channels and
    bins.
    """
    g, tensor, width = parts.g, parts.store.source.tensor, config.hidden_size
    tower = f"{_PREFIX}.{_TOWER}"

    def conv(x: ir.Value, index: int, stride: int, groups: int) -> ir.Value:
        weight = tensor(f"{tower}.embed.conv.{index}.weight")
        bias = tensor(f"{tower}.embed.conv.{index}.bias")
        kernel = weight.shape[2]
        name = f"conv.{index}"
        return g.Conv(
            x, g.constant(weight, f"{name}.weight"), g.constant(bias, f"{name}.bias"), name=name,
            group=groups, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[kernel // 2] * 4,
        )  # fmt: skip

    with g.scope("embed"):
        mean = g.constant(tensor(f"{tower}.encoder_embedding.global_mean"), "mean")
        inverse = g.constant(tensor(f"{tower}.encoder_embedding.global_invstd"), "invstd")
        x = g.Mul(g.Sub(frames, mean, name="centred"), inverse, name="normalised")
        x = g.Unsqueeze(x, g.constant([1], "axis", "int64"), name="map")
        x = g.Relu(conv(x, 0, 2, 1))
        x = g.Relu(conv(conv(x, 2, 2, width), 3, 1, 1))
        x = g.Relu(conv(conv(x, 5, 2, width), 6, 1, 1))
        columns = parts.store.source.shape(f"{tower}.embed.out.weight")[1]
        x = g.Transpose(x, perm=[0, 2, 1, 3], name="channel_major")
        x = g.Reshape(x, g.constant([0, 0, columns], "flat.shape", "int64"), name="flat")
        return parts.linear(x, f"{_TOWER}.embed.out", "out")


def _fold(
    parts: EncoderParts, config: AudioConfig, x: ir.Value, length: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Longer clips become windows of `window_tokens`, zero-padded at the end: ([n, L, hidden], L).

    L = min(tokens, window) and n = ceil(tokens / window), so a short clip stays one unpadded window. The zero
    tail is attended, as in the original.
    """
    g = parts.g
    with g.scope("fold"):
        limit = g.constant([config.window_tokens], "limit", "int64")
        window = g.Min(length, limit, name="window")
        rounding = g.constant([config.window_tokens - 1], "rounding", "int64")
        count = g.Div(g.Add(length, rounding), limit, name="count")
        missing = g.Sub(g.Mul(count, window), length, name="missing")
        before, after = g.constant([0, 0, 0, 0], "before", "int64"), g.constant([0], "after", "int64")
        padded = g.Pad(x, g.Concat(before, missing, after, axis=0, name="pads"), name="padded")
        width = g.constant([config.hidden_size], "width", "int64")
        shape = g.Concat(count, window, width, axis=0, name="shape")
        return g.Reshape(padded, shape, name="windows"), window


def _relative_bias(parts: EncoderParts, config: AudioConfig, window: ir.Value) -> ir.Value:
    """float32 [1, heads, L, L]: the table's row for each clamped distance, key index minus query index."""
    g, reach = parts.g, config.bias_max_distance
    table = parts.store.source.tensor(f"{_PREFIX}.{_TOWER}.relative_attention_bias_layer.bias_values.weight")
    with g.scope("bias"):
        zero, one = g.constant(np.int64(0), "zero"), g.constant(np.int64(1), "one")
        side = g.Range(zero, g.Squeeze(window, name="window"), one, name="side")
        first, second = g.constant([0], "rows", "int64"), g.constant([1], "columns", "int64")
        distance = g.Sub(g.Unsqueeze(side, first), g.Unsqueeze(side, second), name="distance")
        low, high = g.constant(np.int64(-reach), "low"), g.constant(np.int64(reach - 1), "high")
        index = g.Add(g.Clip(distance, low, high), g.constant(np.int64(reach), "shift"), name="index")
        values = g.Gather(g.constant(table, "table"), index, name="values")
        return g.Unsqueeze(g.Transpose(values, perm=[2, 0, 1]), first, name="per_head")


def _layer(parts: EncoderParts, config: AudioConfig, layer: str, x: ir.Value, bias: ir.Value) -> ir.Value:
    """x + half a feed-forward, attention, convolution, half a feed-forward, LayerNorm."""
    g, eps = parts.g, config.norm_eps
    x = _half_feed_forward(parts, config, f"{layer}.feed_forward_in", x, "ff_in")
    normed = parts.layer_norm(x, f"{layer}.layer_norm_att", eps, "attn.norm")
    q, k, v = (parts.linear(normed, f"{layer}.self_attn.linear_{p}", f"attn.{p}") for p in "qkv")
    attended = parts.attention((q, k, v), config.num_heads, "attn.attend", bias=bias)
    x = g.Add(x, parts.linear(attended, f"{layer}.self_attn.linear_out", "attn.out"), name="attn.sum")
    x = g.Add(x, _convolution(parts, config, f"{layer}.conv", x), name="conv.sum")
    x = _half_feed_forward(parts, config, f"{layer}.feed_forward_out", x, "ff_out")
    return parts.layer_norm(x, f"{layer}.layer_norm", eps, "norm")


def _half_feed_forward(
    parts: EncoderParts, config: AudioConfig, layer: str, x: ir.Value, name: str
) -> ir.Value:
    """x + FF(x) / 2; the half is folded into the last linear. The gate is the second half of the first
    linear.
    """
    g = parts.g
    normed = parts.layer_norm(x, f"{layer}.layer_norm", config.norm_eps, f"{name}.norm")
    both = parts.linear(normed, f"{layer}.net.0.linear", f"{name}.gate")
    out = parts.linear(_gated(parts, both, name), f"{layer}.net.2", f"{name}.down", factor=0.5)
    return g.Add(x, out, name=f"{name}.sum")


def _convolution(parts: EncoderParts, config: AudioConfig, layer: str, x: ir.Value) -> ir.Value:
    """LayerNorm, gate, causal depthwise convolution, pointwise, silu, pointwise."""
    g, tensor, width = parts.g, parts.store.source.tensor, config.hidden_size
    full = f"{_PREFIX}.{layer}"
    normed = parts.layer_norm(x, f"{layer}.layer_norm", config.norm_eps, "conv.norm")
    # (a + b1)·silu(g + b2): both constants join the bias of the linear before.
    shift = np.concatenate([tensor(f"{full}.glu.b1").reshape(-1), tensor(f"{full}.glu.b2").reshape(-1)])
    pointwise = f"{full}.glu.ext_pw_conv_1d"
    both = parts.store.linear(
        normed, f"{pointwise}.weight", parts.form, "conv.gate", bias=tensor(f"{pointwise}.bias") + shift
    )
    y = g.Transpose(_gated(parts, both, "conv"), perm=[0, 2, 1], name="conv.channels_first")
    depthwise = f"{full}.dw_sep_conv_1d.dw_conv"
    weight = g.constant(tensor(f"{depthwise}.weight"), "conv.depthwise.weight")
    bias = g.constant(tensor(f"{depthwise}.bias"), "conv.depthwise.bias")
    # Padding both sides and dropping the tail is padding the left alone.
    kernel = config.kernel_size
    y = g.Conv(
        y, weight, bias, name="conv.depthwise", group=width, kernel_shape=[kernel], pads=[kernel - 1, 0]
    )
    y = g.Transpose(y, perm=[0, 2, 1], name="conv.channels_last")
    y = parts.linear(y, f"{layer}.dw_sep_conv_1d.pw_conv", "conv.pointwise")
    y = g.QuickGelu(y, alpha=1.0, name="conv.silu")
    return parts.linear(y, f"{layer}.ext_pw_conv_1d", "conv.out")


def _gated(parts: EncoderParts, both: ir.Value, name: str) -> ir.Value:
    """First half · silu(second half): the opposite order of the decoder's feed-forward."""
    g = parts.g
    value, gate = g.Split(both, name=f"{name}.halves", outputs=2, axis=-1, num_outputs=2)
    return g.Mul(value, g.QuickGelu(gate, alpha=1.0, name=f"{name}.silu"), name=f"{name}.gated")
