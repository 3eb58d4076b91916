"""A bundle's image and speech encoders as graphs of one size: one crop of a picture, one window of a
recording.

What depends on how many there are is left to the runtime's kinds `phi4mm_crops` and `phi4mm_windows`, which
run these graphs piece by piece. Knows how the encoder graphs of `phirt_export.graphs` are laid out. Knows
nothing of quantization.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.encoders.phi4mm_image import ImageConstants
from phirt.encoders.windows import CONTEXT_TOKENS
from phirt.errors import ConfigError
from phirt_export.targets.passes import float_weights, standard_operators
from phirt_export.variants.emitter import STATIC_OPSET, Emitter
from phirt_export.variants.rewriter import ABSENT, Rewriter, Values, name_of, rewritten

SEPARATORS = 2  # rows behind those of a crop: what ends a row of patches, what stands before the whole view
_PROJECTORS = {"then_branch": "audio_features.speech", "else_branch": "audio_features.vision"}


def build_crop(model: ir.Model, constants: ImageConstants, hidden_size: int) -> ir.Model:
    """One crop [1, 3, R, R] to its pooled patches and, behind them, the two separators, all projected to the
    decoder's width: float32 [patches + 2, hidden_size].
    """
    source = _plain(model)
    g, patches, side = Emitter("vision", STATIC_OPSET), constants.grid**2, constants.grid // constants.pool
    rewriter = Rewriter(g, [standard_operators.RULES])
    size = constants.crop_size
    given = {
        "pixel_values": g.input("pixel_values", "float32", [1, 3, size, size]),
        "position_ids": g.input("position_ids", "int32", [1, patches]),
    }
    for value in source.graph.inputs:
        rewriter.put(value, given.get(value.name or "", ABSENT))
    rewriter.put(_output(source, "keys"), g.input("patch_bias", "float32", [1, 1, 1, patches]))
    rewriter.nodes(source.graph, stop_at=_input_of(source, "pool.cells"))
    pooled = _pooled(g, rewriter.get(_input_of(source, "pool.cells")), side, constants.pool)
    separators = [
        rewriter.constant(source.graph.initializers[f"assemble.{name}"])
        for name in ("sub_separator", "global_separator")
    ]
    assert all(one is not None for one in separators)
    rows = np.concatenate([one.reshape(1, -1) for one in separators if one is not None])
    together = g.Concat(pooled, g.constant(rows, "separators"), axis=0, name="rows")
    rewriter.put(_output(source, "assemble.rows"), together)
    (features,) = rewriter.graph(source.graph)
    g.output(features, "crop_features", "float32", [side * side + SEPARATORS, hidden_size])
    return g.finished("phirt")


def build_window(model: ir.Model, constants: AudioConstants, tokens: int, hidden_size: int) -> ir.Model:
    """One window of `tokens` tokens, with the frames of CONTEXT_TOKENS more at either side, which only the
    convolutions look at; float32 [tokens, hidden_size] under each of the two projectors.

    `frames_mask` is 1 for frames of the recording and 0 for those around it, which count as the zeros that
    the convolutions of the whole recording would be padded with; `key_bias` is added to scores.
    """
    source = _plain(model)
    g = Emitter("speech", STATIC_OPSET)
    frames = (tokens + 2 * CONTEXT_TOKENS) * constants.subsampling
    taken = g.input("audio_embeds", "float32", [1, frames, constants.num_mels])
    masks = _masks(g, g.input("frames_mask", "float32", [1, 1, frames, 1]), constants.subsampling)
    keys = g.input("key_bias", "float32", [1, 1, 1, tokens])

    def masked(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
        """A halving's output, with zeros where there is no recording."""
        level = _halvings_before(node) + 1
        return [g.Mul(g.Relu(inputs[0], name=name_of(node)), masks[level], name=f"{node.name}.masked")]

    def attend(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
        return standard_operators.RULES["MultiHeadAttention"](r, node, [*inputs[:4], keys, inputs[5]]) or ()

    rewriter = Rewriter(g, [{"Relu": masked, "MultiHeadAttention": attend}, standard_operators.RULES])
    for value in source.graph.inputs:
        rewriter.put(value, taken if value.name == "audio_embeds" else ABSENT)
    map_, normalised = _output(source, "embed.map"), _output(source, "embed.normalised")
    rewriter.nodes(source.graph, stop_at=normalised)
    shown = g.Unsqueeze(rewriter.get(normalised), g.constant([1], "map.axis", "int64"), name="embed.map")
    rewriter.put(map_, g.Mul(shown, masks[0], name="embed.map.masked"))
    embedded = _input_of(source, "tokens")
    rewriter.nodes(source.graph, stop_at=embedded)
    rewriter.put(_output(source, "fold.windows"), _own_tokens(g, rewriter.get(embedded), masks[3], tokens))
    rewriter.put(_output(source, "bias.per_head"), g.constant(_bias(source, tokens), "bias.per_head"))
    rewriter.nodes(source.graph, stop_at=_output(source, "unfold.rows"))
    rows = rewriter.get(_input_of(source, "unfold.rows"))
    width = source.graph.initializers["fold.width"].const_value
    assert width is not None
    flat = g.constant([tokens, int(width.numpy()[0])], "rows.shape", "int64")
    rewriter.put(_output(source, "unfold.valid"), g.Reshape(rows, flat, name="rows"))
    for branch, name in _PROJECTORS.items():
        (features,) = rewriter.branch(_node(source, "projection"), branch)
        g.output(features, name, "float32", [tokens, hidden_size])
    return g.finished("phirt")


def _plain(model: ir.Model) -> ir.Model:
    """The graph with float32 matrices."""
    return rewritten(model, float_weights.RULES)


def _pooled(g: Emitter, x: ir.Value, side: int, pool: int) -> ir.Value:
    """Averages over pool x pool patches, one axis after the other: [1, patches, width] -> [side², width]."""
    for axis, shape in (("rows", [side, pool, side * pool, -1]), ("columns", [side * side, pool, -1])):
        cells = g.Reshape(x, g.constant(shape, f"pool.{axis}.shape", "int64"), name=f"pool.{axis}.cells")
        x = g.ReduceMean(
            cells, g.constant([1], f"pool.{axis}.axis", "int64"), keepdims=0, name=f"pool.{axis}"
        )
    return x


def _masks(g: Emitter, frames: ir.Value, subsampling: int) -> list[ir.Value]:
    """What multiplies the map [1, channels, frames, bins] before and behind each halving."""
    assert subsampling == 8
    masks = [frames]
    for level in (1, 2, 3):
        begin, step = (
            g.constant([0], f"mask.{level}.begin", "int64"),
            g.constant([2], f"mask.{level}.step", "int64"),
        )
        end = g.constant([np.iinfo(np.int64).max], f"mask.{level}.end", "int64")
        axis = g.constant([2], f"mask.{level}.axis", "int64")
        masks.append(g.Slice(masks[-1], begin, end, axis, step, name=f"mask.{level}"))
    return masks


def _halvings_before(node: ir.Node) -> int:
    """How many of the convolutions' activations stand before this one."""
    return int((node.name or "").rpartition("_")[2]) if "_" in (node.name or "") else 0


def _own_tokens(g: Emitter, x: ir.Value, mask: ir.Value, tokens: int) -> ir.Value:
    """The window's tokens without those around it, zeros behind the recording's end: [1, tokens, width]."""
    axes = g.constant([1], "own.axis", "int64")
    first = g.constant([CONTEXT_TOKENS], "own.first", "int64")
    last = g.constant([CONTEXT_TOKENS + tokens], "own.last", "int64")
    shape = g.constant([1, -1, 1], "own.shape", "int64")
    whole = g.Mul(x, g.Reshape(mask, shape, name="own.mask"), name="own.masked")
    return g.Slice(whole, first, last, axes, name="own.tokens")


def _bias(source: ir.Model, tokens: int) -> np.ndarray:
    """float32 [1, heads, tokens, tokens]: the table's row for each clamped distance, key minus query."""
    table = source.graph.initializers["bias.table"].const_value
    assert table is not None
    values = table.numpy()
    reach = len(values) // 2
    steps = np.arange(tokens)
    index = np.clip(steps[None, :] - steps[:, None], -reach, reach - 1) + reach
    return np.ascontiguousarray(values[index].transpose(2, 0, 1)[None])


def _node(model: ir.Model, name: str) -> ir.Node:
    for node in model.graph:
        if node.name == name:
            return node
    raise ConfigError(
        f"the {model.graph.name} graph is none that phirt builds for Phi-4-multimodal's encoders, which "
        "alone this target takes"
    )


def _output(model: ir.Model, name: str) -> ir.Value:
    return _node(model, name).outputs[0]


def _input_of(model: ir.Model, name: str) -> ir.Value:
    value = _node(model, name).inputs[0]
    assert value is not None
    return value
