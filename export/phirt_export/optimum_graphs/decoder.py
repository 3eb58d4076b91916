"""A traced text decoder in the decoder graph of a bundle: its growing past becomes phirt's buffers.

Knows both contracts. optimum's graph takes past keys and values of exactly the positions before, a mask and
positions, and gives keys and values of all positions back. A bundle's graph takes one buffer with room for
more, knows the positions from `seqlens_k`, and writes new keys and values behind the others in the same
buffer: ScatterND does so in place where past and present are one memory, and what reads the past from before
does not read where it writes. Knows nothing of files or formats.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from phirt.bundle.manifest import Geometry
from phirt.errors import ConfigError
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.optimum_graphs.rewriting import Before, Given, Instead, Rewriting
from phirt_export.optimum_graphs.weights import TracedWeights, held_matrix

_PARTS = ("key", "value")
_PAST = re.compile(r"past_key_values\.(\d{1,4})\.(key|value)")
_OTHERS = ("input_ids", "attention_mask", "position_ids")
# Between the head and the logits there may be what treats every logit by itself.
_POINTWISE = frozenset({"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Neg", "Sub", "Tanh"})
_END = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """How many layers keep keys and values, and of what size."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


def cache_shape(graph: ir.Graph) -> CacheShape:
    """The cache of a traced decoder.

    Raises:
        ConfigError: it has other inputs than those of a text decoder, or its layers keep different things.
    """
    found, layers = set(), set()
    for value in graph.inputs:
        name = str(value.name)
        if (match := _PAST.fullmatch(name)) is not None:
            layers.add((int(match[1]), match[2]))
            found.add(tuple(d if isinstance(d, int) else None for d in value.shape or ()))
        elif name not in _OTHERS:
            raise _unlike(f"takes {name!r}")
    if layers != {(i, part) for i in range(len(layers) // 2) for part in _PARTS} or not layers:
        raise _unlike("keeps no keys and values of each layer")
    sizes = found.pop()
    if found or len(sizes) != 4 or None in (sizes[1], sizes[3]):
        raise _unlike("keeps keys and values of different shapes")
    heads, width = sizes[1], sizes[3]
    assert heads is not None and width is not None
    return CacheShape(len(layers) // 2, heads, width)


def _unlike(what: str) -> ConfigError:
    return ConfigError(
        f"the traced model {what}; accepted are text decoders that take ids, a mask, positions, and past "
        "keys and values of one shape in all layers"
    )


def build_traced_decoder(
    store: WeightStore,
    graph: ir.Graph,
    weights: TracedWeights,
    geometry: Geometry,
    matrix: WeightFormat,
    table: WeightFormat,
) -> None:
    """Append the traced decoder to the store's graph; inputs and outputs are those of the bundle's contract.

    Args:
        matrix: format of its matrices.
        table: format of the token table and the head.
    """
    g = store.g
    inputs = _Inputs(g, geometry)
    places = _Places(g, inputs, geometry.num_kv_heads)
    head = _head(graph)
    before: dict[ir.Node, Before] = {} if head is None else {head: places.asked}
    written: dict[str, ir.Value] = {}
    given: dict[str, Given] = {
        "input_ids": lambda: inputs.ids,
        "attention_mask": lambda: places.mask,
        "position_ids": lambda: places.ids,
        **{
            f"past_key_values.{name}": functools.partial(places.before, past)
            for name, past in inputs.past.items()
        },
    }
    instead = _joins(graph, inputs, places, written)
    rewriting = Rewriting(store, graph, weights, matrix, table, given, before, instead)
    rewriting.run()
    outputs = {str(value.name): rewriting.value(value) for value in graph.outputs}
    logits = outputs["logits"] if head is not None else places.asked(outputs["logits"])
    g.output(logits, "logits", "float32", [1, "logits", geometry.vocab_size])
    shape: list[int | str] = [1, geometry.num_kv_heads, "capacity", geometry.head_dim]
    for name, past in inputs.past.items():
        if name not in written:
            written[name] = places.written(past, places.new(outputs[f"present.{name}"]))
        g.output(written[name], f"present.{name}", "float32", shape)


def _joins(
    graph: ir.Graph, inputs: _Inputs, places: _Places, written: dict[str, ir.Value]
) -> dict[ir.Node, Instead]:
    """For nodes that join past and new positions, as most do: the buffer takes the new ones in, and attention
    reads the buffer. That copies what is kept once, and not twice. Buffers that were taken care of come into
    `written` by their names.
    """

    def join(name: str, new: ir.Value, stands_for: Callable[[ir.Value], ir.Value]) -> ir.Value:
        written[name] = places.written(inputs.past[name], stands_for(new))
        return places.all(written[name])

    found: dict[ir.Node, Instead] = {}
    for value in graph.outputs:
        node, name = value.producer(), str(value.name).removeprefix("present.")
        if name not in inputs.past or node is None or node.op_type != "Concat" or len(node.inputs) != 2:
            continue
        past, new = node.inputs
        if past is None or new is None or past.name != f"past_key_values.{name}":
            continue
        if node.attributes["axis"].as_int() in (2, -2):
            found[node] = functools.partial(join, name, new)
    return found


class _Inputs:
    """The graph inputs, declared in the order of the contract. Media and adapters change nothing here."""

    def __init__(self, g: GraphBuilder, geometry: Geometry) -> None:
        self.ids = g.input("input_ids", "int64", [1, "tokens"])
        g.input("media_features", "float32", ["rows", geometry.hidden_size])
        g.input("route", "int64", [1])
        self.num_logits = g.input("num_logits", "int64", [1])
        self.seqlens = g.input("seqlens_k", "int32", [1])
        g.input("total_sequence_length", "int32", [1])
        shape: list[int | str] = [1, geometry.num_kv_heads, "capacity", geometry.head_dim]
        names = [f"{i}.{part}" for i in range(geometry.num_layers) for part in _PARTS]
        self.past = {name: g.input(f"past_key_values.{name}", "float32", shape) for name in names}


class _Places:
    """What follows from where this run's tokens stand: positions, mask, rows of the buffers."""

    def __init__(self, g: GraphBuilder, inputs: _Inputs, kv_heads: int) -> None:
        self._g, self._kv_heads = g, kv_heads
        with g.scope("places"):
            self._axis = g.constant([2], "axis", "int64")
            self._end = g.constant([_END], "end", "int64")
            self._none = g.constant([0], "none", "int64")
            self._one = g.constant([1], "one", "int64")
            length = g.Shape(inputs.ids, start=1, end=2, name="length")
            self._total = g.Add(
                g.Cast(inputs.seqlens, to=int(ir.DataType.INT64), name="last"), self._one, name="total"
            )
            self._first = g.Sub(self._total, length, name="first")
            # Not a negative start: -0 would mean all positions where none is asked for.
            self._first_asked = g.Sub(length, inputs.num_logits, name="first_asked")
            scalars = [g.Squeeze(one, name="scalar") for one in (self._first, self._total, self._one)]
            self._positions = g.Range(*scalars, name="positions")
            self.ids = g.Unsqueeze(self._positions, self._none, name="ids")
            sizes = g.Concat(self._one, self._total, axis=0, name="mask_shape")
            self.mask = g.Expand(g.constant([[1]], "present", "int64"), sizes, name="mask")
            self._rows = self._indices(length)

    def before(self, buffer: ir.Value) -> ir.Value:
        """The positions of a buffer [1, heads, capacity, width] that were there before this run."""
        return self._g.Slice(buffer, self._none, self._first, self._axis, name="past")

    def new(self, whole: ir.Value) -> ir.Value:
        """This run's positions of `whole` [1, heads, total, width]."""
        return self._g.Slice(whole, self._first, self._end, self._axis, name="new")

    def all(self, buffer: ir.Value) -> ir.Value:
        """The positions of a buffer that are there after this run."""
        return self._g.Slice(buffer, self._none, self._total, self._axis, name="all")

    def written(self, buffer: ir.Value, new: ir.Value) -> ir.Value:
        """The buffer with this run's positions [1, heads, T, width] in their place."""
        return self._g.ScatterND(buffer, self._rows, new, name="written")

    def asked(self, x: ir.Value) -> ir.Value:
        """The last `num_logits` positions of x [1, T, ...]."""
        return self._g.Slice(x, self._first_asked, self._end, self._one, name="asked")

    def _indices(self, length: ir.Value) -> ir.Value:
        """Places of this run's rows in a buffer, int64 [1, heads, T, 3]."""
        g = self._g
        shape = g.Concat(
            g.constant([1, self._kv_heads], "heads_shape", "int64"), length, self._one, axis=0, name="shape"
        )
        heads = g.constant(np.arange(self._kv_heads).reshape(1, -1, 1, 1), "heads", "int64")
        to_rows = g.constant([1, 1, -1, 1], "to_rows", "int64")
        rows = g.Reshape(self._positions, to_rows, name="rows")
        batch = g.constant(np.zeros((1, 1, 1, 1)), "batch", "int64")
        parts = [g.Expand(part, shape, name="spread") for part in (batch, heads, rows)]
        return g.Concat(*parts, axis=3, name="indices")


def _head(graph: ir.Graph) -> ir.Node | None:
    """The node that multiplies hidden states [1, T, hidden] by the head, so that only the positions that are
    asked for need be multiplied; None where what follows it does more than change each logit by itself.
    """
    value = next((one for one in graph.outputs if one.name == "logits"), None)
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "MatMul" and held_matrix(node) is not None:
            return node
        if node.op_type not in _POINTWISE:
            return None
        computed = list(_computed(node))
        value = computed[0] if len(computed) == 1 else None
    return None


def _computed(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None and value.const_value is None)
