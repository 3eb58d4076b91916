"""What a decoder has to do for a token: bytes to be read, multiplications to be made. Counted, not measured.

Knows what kinds of nodes read of their weights, and the manifest's geometry. Knows no clock.

    bytes of a decode step at depth d  =  weights + embedding row + keys and values of d positions
    operations of a prefill of n       =  2 n matrices + 2 head + attention

where `weights` are all matrices with their scales and zero points, norms and the head, each once; a matrix
has as many multiplications for a token as elements, each with an addition; and causal attention multiplies
every query with the keys and the values up to its own position (n (n + 1) / 2 pairs). The head scores only
the last position of a prefill.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from phirt.bundle.manifest import Geometry, Manifest
from phirt.bundle.onnx_graph import Graph, Node, Weight, read_graph
from phirt.errors import BundleError

_MULTIPLIES = frozenset({"MatMul", "MatMulNBits", "Gemm"})
_READS_ALL = _MULTIPLIES | {
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization",
    "SkipLayerNormalization", "Add", "Mul",
}  # fmt: skip
_READS_A_ROW = frozenset({"Gather", "GatherBlockQuantized"})
# What these make of weights alone is computed once, while the graph opens, and is float32 then: of scales in
# float16, and of several matrices under one scale.
_FOLDED = frozenset({"Cast", "Mul", "Add", "Transpose"})
_FLOAT32 = 1  # of TensorProto.DataType
_LOWER_BITS = 2  # a matrix of 6 bits lies as 4 and 2: the lower ones are no matrix of their own


@dataclasses.dataclass(frozen=True)
class DecoderWork:
    """The decoder's share of `DecoderWork.bytes_per_token` and `operations` that does not depend on lengths.

    `weight_bytes` are read once in each step, `row_bytes` are those of one id's embedding; `matrices` and
    `head` count elements; `cache_bytes` are those of the keys and values of one position in all layers.
    """

    weight_bytes: int
    row_bytes: int
    matrices: int
    head: int
    cache_bytes: int
    attention_width: int
    layers: int

    def bytes_per_token(self, depth: float) -> float:
        """Bytes that one decode step has to read with `depth` positions cached."""
        return self.weight_bytes + self.row_bytes + self.cache_bytes * depth

    def prefill_operations(self, tokens: int) -> int:
        """Multiplications and additions of a prefill of `tokens` into an empty cache."""
        pairs = tokens * (tokens + 1) // 2
        attention = 4 * self.layers * self.attention_width * pairs
        return 2 * self.matrices * tokens + 2 * self.head + attention


def decoder_work(manifest: Manifest) -> DecoderWork:
    """Counts it for route `none`, on which of each branch the way that reads least is taken.

    Raises BundleError where the decoder's graph cannot be read or multiplies by no weights.
    """
    spec, geometry = manifest.graphs["decoder"], manifest.geometry
    path = manifest.path(spec.file)
    counted = _count(read_graph(path), {})
    head = geometry.vocab_size * geometry.hidden_size
    matrices = sum(counted.elements.values()) - head
    if matrices <= 0:
        raise BundleError(f"{path} has no matrices and head of the manifest's sizes; export the bundle again")
    return DecoderWork(
        weight_bytes=sum(counted.whole.values()),
        row_bytes=sum(counted.rows.values()),
        matrices=matrices,
        head=head,
        cache_bytes=_cache_bytes(geometry, {tensor.name: tensor.dtype for tensor in spec.inputs}),
        attention_width=geometry.num_heads * geometry.head_dim,
        layers=geometry.num_layers,
    )


def _cache_bytes(geometry: Geometry, dtypes: dict[str, str]) -> int:
    """Bytes of one position's keys and values, in the types in which the graph keeps them."""
    names = [
        f"past_key_values.{layer}.{part}" for layer in range(geometry.num_layers) for part in ("key", "value")
    ]
    if not dtypes.keys() >= set(names):
        raise BundleError(
            "the decoder graph keeps no keys and values for each layer; export the bundle again"
        )
    sizes = (np.dtype(dtypes[name]).itemsize for name in names)
    return geometry.num_kv_heads * geometry.head_dim * sum(sizes)


@dataclasses.dataclass
class _Counted:
    """By name: bytes of weights read whole, bytes of rows, elements of matrices."""

    whole: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    elements: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, other: _Counted) -> None:
        self.whole |= other.whole
        self.rows |= other.rows
        self.elements |= other.elements

    @property
    def nbytes(self) -> int:
        return sum(self.whole.values()) + sum(self.rows.values())


def _count(graph: Graph, outside: dict[str, Weight]) -> _Counted:
    known = {**outside, **graph.weights}
    counted = _Counted()
    for node in graph.nodes:
        if node.kind in _FOLDED and all(name in known for name in node.inputs):
            shape = max((known[name].shape for name in node.inputs), key=math.prod)
            shape = shape[::-1] if node.kind == "Transpose" else shape
            known |= {name: Weight(name, shape, _FLOAT32) for name in node.outputs}
        elif node.graphs:
            # Adapters lie in branches of their own, and route none is the way without them; both rotary
            # regimes read the same.
            counted.add(min((_count(inner, known) for inner in node.graphs), key=lambda way: way.nbytes))
        else:
            _count_node(node, known, counted)
    return counted


def _count_node(node: Node, known: dict[str, Weight], counted: _Counted) -> None:
    weights = [known[name] for name in node.inputs if name in known]
    if not weights:
        return
    if node.kind in _READS_A_ROW and node.inputs[0] in known:
        for weight in weights:
            if weight.name != node.inputs[1] and weight.shape:  # the indices are no weights
                counted.rows[weight.name] = weight.nbytes // max(1, weight.shape[0])
    elif node.kind in _READS_ALL:
        for weight in weights:
            counted.whole[weight.name] = weight.nbytes
    if node.kind == "MatMulNBits" and node.integers.get("bits") != _LOWER_BITS:
        counted.elements[weights[0].name] = node.integers.get("K", 0) * node.integers.get("N", 0)
    elif node.kind in _MULTIPLIES:
        counted.elements |= {
            weight.name: int(np.prod(weight.shape, dtype=np.int64))
            for weight in weights
            if len(weight.shape) == 2
        }
