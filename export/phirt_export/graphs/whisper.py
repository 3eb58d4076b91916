"""The graph of Whisper's encoder as a tower: a log-mel spectrogram in, rows of decoder width out.

The counterpart of `reference/whisper.py`; it takes as many frames as make whole rows. Knows nothing of files
or of how spectrograms are made.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.encoder import EncoderParts
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.reference.config import WhisperConfig
from phirt_export.reference.whisper import EPSILON, MEL_FRAMES, Recogniser, rates

_PREFIX = "model.embed_tokens_extend.sound_embed"


def build_whisper(store: WeightStore, config: WhisperConfig, hidden_size: int, form: WeightFormat) -> None:
    """Append the encoder to the store's graph; inputs and outputs are those of the bundle's contract."""
    g, parts = store.g, EncoderParts(store, form, _PREFIX)
    mels = g.input("input_features", "float32", [1, config.num_mels, "frames"])
    x = _positioned(parts, config, mels)
    for n in range(config.num_layers):
        with g.scope(f"layers.{n}"):
            x = _layer(parts, config, f"encoder.layers.{n}", x)
    x = parts.layer_norm(x, "encoder.norm", EPSILON, "norm")
    stack = g.constant([1, -1, config.stacked * config.hidden_size], "stack", "int64")
    features = _recogniser(parts, g.Reshape(x, stack, name="stacked"))
    scores = g.Softmax(parts.linear(features, "pieces", "pieces"), axis=-1)
    spoken = g.Slice(
        scores, *(g.constant([value], name, "int64") for name, value in
                  (("first", 0), ("blank", len(config.pieces)), ("axis", 2))),
    )  # fmt: skip
    words = store.linear(spoken, f"{_PREFIX}.names.weight", form, "names")
    rows = g.Add(words, parts.linear(features, "projection", "projection"), name="sum")
    flat = g.Squeeze(rows, g.constant([0], "batch", "int64"), name="rows")
    g.output(flat, "audio_features", "float32", ["rows", hidden_size])


def _positioned(parts: EncoderParts, config: WhisperConfig, mels: ir.Value) -> ir.Value:
    """[1, frames, width] behind the convolutions, positions added."""
    g = parts.g
    x = g.Gelu(_conv(parts, mels, "encoder.conv1", 1, 1))
    x = g.Transpose(g.Gelu(_conv(parts, x, "encoder.conv2", MEL_FRAMES, 1)), perm=[0, 2, 1])
    length = g.Squeeze(g.Shape(x, start=1, end=2), g.constant([0], "axis", "int64"))
    count = g.Range(g.constant(0, "zero", "int64"), length, g.constant(1, "one", "int64"))
    places = g.Unsqueeze(g.Cast(count, to=int(ir.DataType.DOUBLE)), g.constant([1], "column", "int64"))
    angles = g.Mul(places, g.constant(rates(config.hidden_size).numpy(), "rates"))
    turns = g.Sub(angles, g.Mul(g.Floor(g.Div(angles, g.constant(2 * np.pi, "turn", "float64"))),
                                g.constant(2 * np.pi, "full", "float64")))  # fmt: skip
    small = g.Cast(turns, to=int(ir.DataType.FLOAT))
    return g.Add(x, g.Concat(g.Sin(small), g.Cos(small), axis=1), name="positioned")


def _layer(parts: EncoderParts, config: WhisperConfig, name: str, x: ir.Value) -> ir.Value:
    g = parts.g
    normed = parts.layer_norm(x, f"{name}.attention_norm", EPSILON, "attention.norm")
    thirds = g.constant([config.hidden_size] * 3, "thirds", "int64")
    q, k, v = g.Split(parts.linear(normed, f"{name}.qkv", "qkv"), thirds, axis=-1, outputs=3)
    attended = parts.attention((q, k, v), config.num_heads, "attention")
    x = g.Add(x, parts.linear(attended, f"{name}.out", "out"), name="attention.sum")
    normed = parts.layer_norm(x, f"{name}.mlp_norm", EPSILON, "mlp.norm")
    inner = g.Gelu(parts.linear(normed, f"{name}.up", "up"))
    return g.Add(x, parts.linear(inner, f"{name}.down", "down"), name="mlp.sum")


def _recogniser(parts: EncoderParts, stacked: ir.Value) -> ir.Value:
    g, name = parts.g, "recogniser"
    x = g.Gelu(parts.linear(stacked, f"{name}.inner", "inner"))
    for n in range(Recogniser.LAYERS):
        with g.scope(f"recogniser.{n}"):
            y = g.Transpose(parts.layer_norm(x, f"{name}.norms.{n}", EPSILON, "norm"), perm=[0, 2, 1])
            y = g.Gelu(_conv(parts, y, f"{name}.convolutions.{n}", 1, Recogniser.KERNEL // 2))
            x = g.Add(x, g.Transpose(y, perm=[0, 2, 1]), name="sum")
    return parts.layer_norm(x, f"{name}.norm", EPSILON, "recognised")


def _conv(parts: EncoderParts, x: ir.Value, layer: str, step: int, pad: int) -> ir.Value:
    """A convolution along time."""
    g = parts.g
    filters = parts.filters(layer, coded=True)
    bias = parts.store.source.tensor(f"{_PREFIX}.{layer}.bias")
    kernel = parts.store.source.shape(f"{_PREFIX}.{layer}.weight")[2]
    return g.Conv(
        x, filters, g.constant(bias, f"{layer}.bias"), kernel_shape=[kernel], strides=[step], pads=[pad, pad],
        name=layer,
    )  # fmt: skip
