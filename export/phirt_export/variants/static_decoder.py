"""A bundle's decoder as graphs of one size: `embed`, the layers over some tokens, `head`.

Knows how the decoder graph of `phirt_export.graphs.decoder` is laid out, and the contract of
`phirt.bundle.static`. Knows nothing of quantization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from phirt.bundle.manifest import Geometry, StaticShapes
from phirt.bundle.static import GATE, LAYER_INPUTS, layer_names
from phirt.errors import ConfigError
from phirt_export.graphs.builder import OPSET
from phirt_export.targets.passes import float_weights, gates, standard_operators, static_attention
from phirt_export.variants.emitter import STATIC_OPSET, Emitter
from phirt_export.variants.rewriter import ABSENT, Rewriter, Rules, integer, rewritten

# What is left of a score under it, where scores themselves are small.
MASKED = -1e4


@dataclasses.dataclass(frozen=True)
class DecoderSource:
    """A decoder graph with its weights as float32 matrices, and where its parts meet: `embedded` goes into
    the first layer, `hidden` into the head.
    """

    original: ir.Model
    model: ir.Model
    embedded: ir.Value
    hidden: ir.Value
    cos: np.ndarray
    sin: np.ndarray
    sliding_window: int

    @classmethod
    def of(cls, model: ir.Model) -> DecoderSource:
        """Looks at a bundle's decoder graph. Raises ConfigError for one that phirt does not build itself."""
        plain = rewritten(model, float_weights.RULES)
        attention = _first(plain.graph, "GroupQueryAttention")
        if attention is None or len(attention.inputs) < 9:
            raise ConfigError(
                "the decoder graph is none that phirt builds itself, or has no rotary tables; this target "
                "takes those of its own families"
            )
        cos, sin = (_array(attention.inputs[i]) for i in (7, 8))
        window = integer(attention, "local_window_size", -1)
        return cls(model, plain, _embedded(plain.graph), _hidden(plain.graph), cos, sin, window)


def build_layers(
    source: DecoderSource, geometry: Geometry, adapters: Sequence[str], static: StaticShapes, tokens: int
) -> ir.Model:
    """The layers over `tokens` tokens, in float32."""
    g, pairs = Emitter("layers", STATIC_OPSET), source.cos.shape[1]
    group = geometry.num_heads // geometry.num_kv_heads
    shapes = {
        "inputs_embeds": [1, tokens, geometry.hidden_size],
        "cos": [1, tokens, pairs],
        "sin": [1, tokens, pairs],
        "attention_mask": [1, 1, group * tokens, static.window + tokens],
    }
    taken = {name: g.input(name, "float32", shapes[name]) for name in LAYER_INPUTS}
    opened = {name: g.input(f"{GATE}{name}", "float32", [1]) for name in adapters}
    inputs = static_attention.StaticInputs(taken["cos"], taken["sin"], taken["attention_mask"], tokens)
    rules: list[Rules] = [gates.rules(opened), static_attention.rules(inputs), standard_operators.RULES]
    rewriter = Rewriter(g, rules)
    graph = source.model.graph
    cache = [1, geometry.num_kv_heads, static.window, geometry.head_dim]
    for value in graph.inputs:
        name = value.name or ""
        is_past = name.startswith("past_key_values.")
        rewriter.put(value, g.input(name, "float32", cache) if is_past else ABSENT)
    rewriter.put(source.embedded, taken["inputs_embeds"])
    present = rewriter.graph(graph)[1:]
    g.output(rewriter.get(source.hidden), "hidden", "float32", shapes["inputs_embeds"])
    cache[2] = tokens
    for name, value in zip(layer_names(geometry.num_layers), present, strict=True):
        g.output(value, f"present.{name}", "float32", cache)
    return g.finished("phirt")


def build_head(source: DecoderSource, geometry: Geometry) -> ir.Model:
    """Logits of one position from its hidden state, in float32."""
    g = Emitter("head", STATIC_OPSET)
    rewriter = Rewriter(g, [standard_operators.RULES])
    for value in source.model.graph.inputs:
        rewriter.put(value, ABSENT)
    rewriter.put(source.hidden, g.input("hidden", "float32", [1, 1, geometry.hidden_size]))
    logits = rewriter.graph(source.model.graph)[0]
    g.output(logits, "logits", "float32", [1, 1, geometry.vocab_size])
    return g.finished("phirt")


def build_embed(
    source: DecoderSource, geometry: Geometry, static: StaticShapes, masked: float = MASKED
) -> ir.Model:
    """What the layers take, from ids and a place in the sequence; for the CPU, of any number of tokens.

    Args:
        masked: what is added to scores of positions that a token does not see.
    """
    g = Emitter("embed", OPSET)
    rewriter = Rewriter(g, [])
    graph = source.original.graph
    named: dict[str, tuple[str, list[int | str]]] = {
        "input_ids": ("int64", [1, "tokens"]),
        "media_features": ("float32", ["rows", geometry.hidden_size]),
    }
    for value in graph.inputs:
        known = named.get(value.name or "")
        rewriter.put(value, ABSENT if known is None else g.input(value.name or "", *known))
    position = g.input("position", "int64", [1])
    rewriter.nodes(graph, stop_at=_embedded(graph))
    embedded = rewriter.get(_embedded(graph))
    g.output(
        g.Identity(embedded, name="inputs_embeds"),
        "inputs_embeds",
        "float32",
        [1, "tokens", geometry.hidden_size],
    )
    ids = rewriter.get(next(value for value in graph.inputs if value.name == "input_ids"))
    positions = _positions(g, ids, position)
    for name, table in (("cos", source.cos), ("sin", source.sin)):
        rows = g.Gather(g.constant(_rows(table, static), f"{name}.table"), positions)
        batched = g.Unsqueeze(rows, g.constant([0], f"{name}.axis", "int64"), name=f"{name}.rows")
        g.output(batched, name, "float32", [1, "tokens", table.shape[1]])
    mask = _mask(g, source, geometry, static, position, positions, masked)
    g.output(mask, "attention_mask", "float32", [1, 1, "rows_of_groups", "seen"])
    return g.finished("phirt")


def _rows(table: np.ndarray, static: StaticShapes) -> np.ndarray:
    """The rows of a rotary table that positions of a window ask for, those of padding behind it included."""
    rows = table[: static.window + static.prefill]
    return np.pad(rows, ((0, static.window + static.prefill - len(rows)), (0, 0)), mode="edge")


def _positions(g: Emitter, ids: ir.Value, position: ir.Value) -> ir.Value:
    """Places of the run's tokens in the sequence, int64 [tokens]."""
    zero, one = g.constant(np.int64(0), "zero"), g.constant(np.int64(1), "one")
    count = g.Squeeze(g.Shape(ids, start=1, end=2, name="count"), name="count.scalar")
    return g.Add(g.Range(zero, count, one, name="steps"), position, name="positions")


def _mask(
    g: Emitter,
    source: DecoderSource,
    geometry: Geometry,
    static: StaticShapes,
    position: ir.Value,
    positions: ir.Value,
    masked: float,
) -> ir.Value:
    """float32 [1, 1, group · tokens, window + tokens]: 0 where a token sees a position, else `masked`. A
    place in the window holds the position of its number, if that is before this run.
    """
    first, last = g.constant([0], "mask.first", "int64"), g.constant([1], "mask.last", "int64")
    window = g.constant(np.arange(static.window), "mask.window", "int64")
    # Places that hold nothing count as positions that nobody has reached.
    never = g.constant(np.int64(np.iinfo(np.int64).max // 2), "mask.never")
    past = g.Where(g.Less(window, position, name="mask.filled"), window, never, name="mask.past")
    keys = g.Unsqueeze(g.Concat(past, positions, axis=0, name="mask.keys"), first, name="mask.columns")
    rows = g.Unsqueeze(positions, last, name="mask.rows")
    seen = g.LessOrEqual(keys, rows, name="mask.before")
    if source.sliding_window > 0:
        near = g.Sub(rows, g.constant(np.int64(source.sliding_window), "mask.reach"), name="mask.oldest")
        seen = g.And(seen, g.Greater(keys, near, name="mask.near"), name="mask.seen")
    zero, excluded = g.constant(np.float32(0), "mask.zero"), g.constant(np.float32(masked), "mask.excluded")
    added = g.Where(seen, zero, excluded, name="mask.added")
    group = geometry.num_heads // geometry.num_kv_heads
    tiled = g.Tile(added, g.constant([group, 1], "mask.groups", "int64"), name="mask.tiled")
    return g.Unsqueeze(tiled, g.constant([0, 1], "mask.axes", "int64"), name="mask")


def _embedded(graph: ir.Graph) -> ir.Value:
    """The main graph's value that the first norm takes."""
    norm = _first(graph, "SimplifiedLayerNormalization")
    assert norm is not None and norm.inputs[0] is not None
    return norm.inputs[0]


def _hidden(graph: ir.Graph) -> ir.Value:
    """What the head multiplies: the first output of the stack of layers."""
    for node in reversed(list(graph)):
        if node.op_type == "If" and (node.name or "").startswith("stack"):
            return node.outputs[0]
        if node.op_type == "SkipSimplifiedLayerNormalization":
            return node.outputs[0]
    raise ConfigError("the decoder graph has no layers that phirt builds; this target takes its own families")


def _first(graph: ir.Graph, kind: str) -> ir.Node | None:
    """The first node of a kind, in branches too."""
    return next((node for node in ir.traversal.RecursiveGraphIterator(graph) if node.op_type == kind), None)


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()
