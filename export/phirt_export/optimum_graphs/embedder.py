"""A traced encoder as the graph of an embedding model: from ids and a mask to one vector a text.

Knows the encoder's inputs, the ways of pooling that sentence-transformers has, and scaling to length 1. Knows
nothing of files or formats.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.optimum_graphs.checkpoint import SentenceOptions
from phirt_export.optimum_graphs.rewriting import Given, Rewriting
from phirt_export.optimum_graphs.weights import TracedWeights

_HIDDEN = "last_hidden_state"
_LEAST_COUNT, _LEAST_LENGTH = 1e-9, 1e-12  # as sentence-transformers and torch have them


def build_embedder(
    store: WeightStore,
    graph: ir.Graph,
    weights: TracedWeights,
    width: int,
    options: SentenceOptions,
    matrix: WeightFormat,
    table: WeightFormat,
) -> None:
    """Append encoder, pooling and scaling; the output `embeddings` is float32 [texts, width x poolings].

    Raises:
        ConfigError: the encoder takes other inputs than ids, a mask, positions and kinds of tokens.
    """
    g = store.g
    ids = g.input("input_ids", "int64", ["texts", "tokens"])
    mask = g.input("attention_mask", "int64", ["texts", "tokens"])
    given: dict[str, Given] = {
        "input_ids": lambda: ids,
        "attention_mask": lambda: mask,
        "token_type_ids": lambda: _zeros(g, ids),
        "position_ids": lambda: _positions(g, ids),
    }
    for value in graph.inputs:
        if value.name not in given:
            raise ConfigError(
                f"the traced encoder takes {value.name!r}; accepted are encoders of text alone, which take "
                f"{', '.join(given)}"
            )
    rewriting = Rewriting(store, graph, weights, matrix, table, given)
    rewriting.run()
    hidden = next((value for value in graph.outputs if value.name == _HIDDEN), None)
    if hidden is None:
        raise ConfigError(f"the traced encoder gives no {_HIDDEN!r}; accepted are encoders of text alone")
    with g.scope("pooling"):
        pooling = _Pooling(g, rewriting.value(hidden), mask)
        parts = [getattr(pooling, name)() for name in options.poolings]
        vectors = parts[0] if len(parts) == 1 else g.Concat(*parts, axis=1, name="joined")
        vectors = _scaled(g, vectors) if options.normalized else vectors
    g.output(vectors, "embeddings", "float32", ["texts", width * len(options.poolings)])


class _Pooling:
    """From hidden states [texts, T, width] to one vector a text; padding comes last and counts for
    nothing.
    """

    def __init__(self, g: GraphBuilder, hidden: ir.Value, mask: ir.Value) -> None:
        self._g, self._hidden = g, hidden
        self._axis = g.constant([1], "tokens_axis", "int64")
        self._last_axis = g.constant([2], "last_axis", "int64")
        self._mask = g.Cast(mask, to=int(ir.DataType.FLOAT), name="mask")
        self._ids = mask

    def mean(self) -> ir.Value:
        """The mean over the tokens."""
        return self._weighted(self._mask, lambda count: count)

    def mean_sqrt_len_tokens(self) -> ir.Value:
        """Their sum over the root of their number."""
        return self._weighted(self._mask, lambda count: self._g.Sqrt(count, name="root"))

    def weightedmean(self) -> ir.Value:
        """The mean in which later tokens count more, each as its place says."""
        g = self._g
        places = g.Cast(_positions(g, self._ids, 1), to=int(ir.DataType.FLOAT), name="places")
        return self._weighted(g.Mul(self._mask, places, name="weights"), lambda count: count)

    def lasttoken(self) -> ir.Value:
        """The last token that is no padding."""
        g = self._g
        count = g.ReduceSum(self._ids, self._axis, keepdims=1, name="count")
        is_last = g.Equal(_positions(g, self._ids, 1), count, name="is_last")
        return self._weighted(g.Cast(is_last, to=int(ir.DataType.FLOAT), name="last"), lambda one: one)

    def cls(self) -> ir.Value:
        """The first token."""
        g = self._g
        return g.Gather(self._hidden, g.constant(np.int64(0), "first"), axis=1, name="first_token")

    def max(self) -> ir.Value:
        """The largest of each element."""
        g = self._g
        wide = g.Unsqueeze(g.Cast(self._ids, to=int(ir.DataType.BOOL)), self._last_axis, name="wide_mask")
        lowest = g.constant(np.float32(-np.inf), "lowest")
        return g.ReduceMax(g.Where(wide, self._hidden, lowest), self._axis, keepdims=0, name="largest")

    def _weighted(self, weights: ir.Value, divisor: Callable[[ir.Value], ir.Value]) -> ir.Value:
        """The weighted sum over what the sum of the weights makes of itself."""
        g = self._g
        wide = g.Unsqueeze(weights, self._last_axis, name="wide")
        total = g.ReduceSum(g.Mul(self._hidden, wide, name="each"), self._axis, keepdims=0, name="sum")
        count = g.ReduceSum(weights, self._axis, keepdims=1, name="weight")
        least = g.constant(np.float32(_LEAST_COUNT), "least_count")
        return g.Div(total, divisor(g.Max(count, least, name="divisor")), name="mean")


def _scaled(g: GraphBuilder, vectors: ir.Value) -> ir.Value:
    """Vectors of length 1."""
    length = g.ReduceL2(vectors, g.constant([1], "axis", "int64"), keepdims=1, name="length")
    least = g.constant(np.float32(_LEAST_LENGTH), "least_length")
    return g.Div(vectors, g.Max(length, least, name="divisor"), name="scaled")


def _zeros(g: GraphBuilder, like: ir.Value) -> ir.Value:
    return g.Mul(like, g.constant(np.int64(0), "zero"), name="zeros")


def _positions(g: GraphBuilder, like: ir.Value, first: int = 0) -> ir.Value:
    """Places of tokens from `first` on, int64 [1, T]."""
    zero, one = g.constant(np.int64(first), "first"), g.constant(np.int64(1), "one")
    length = g.Squeeze(g.Shape(like, start=1, end=2), name="length")
    steps = g.Range(zero, g.Add(length, zero, name="stop"), one, name="steps")
    return g.Unsqueeze(steps, g.constant([0], "axis", "int64"), name="positions")
