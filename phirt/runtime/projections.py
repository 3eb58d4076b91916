"""Products of quantized weights take in what stands around them in a layer: the gated activation of their
input, its second rounding, the lower bits of weights that are kept in two parts, and LoRA adapters that a
condition chooses. Each becomes one node, phirt-kernels' Projection.

Knows the nodes that an export writes for these (`phirt_export.graphs`: `decoder`, `stored_blocks`, `lora`);
where others stand, or a value in between is used elsewhere, all stays as it is. Knows nothing of weights.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from phirt.runtime.editable_graph import Graph, Model, Node
from phirt.runtime.finer_inputs import Constants, is_sum_of_two, rounded_twice
from phirt.runtime.kernel_nodes import DOMAIN, PRODUCT, SIZES

_KIND = b"Projection"
_BIAS_OF_PRODUCT = 5
_MATRIX_INPUTS = 3  # codes, scales, zero points
# Inputs of a Projection: where matrices begin, and others stand.
_BASE, _BIAS, _LOW, _INACTIVE, _FIRST, _PAIRS = 1, 4, 5, 8, 9, 10
_INPUTS = _PAIRS + 4 * _MATRIX_INPUTS
_USUAL_ALPHA = 1.702  # of QuickGelu


def fuse_projections(model: Model) -> None:
    """Puts Projections in the place of products and the nodes around them, wherever they are alike."""
    definitions = model.definitions()
    graphs = [graph for outer in model.graphs for graph in outer.all_graphs()]
    small = [constant for graph in graphs for constant in graph.small_constants()]
    known = {name: content for name, content in small if definitions[name] == 1}
    for graph in graphs:
        kinds = {node.kind for node in graph.nodes}
        if PRODUCT in kinds and b"Add" in kinds:
            _fuse_parts(graph)
        if b"ReduceSum" in kinds and b"Round" in kinds:
            _fuse_roundings(graph, known)
        if PRODUCT in kinds and kinds & {b"If", b"Add"}:
            _fuse_adapters(graph, definitions)
        if b"QuickGelu" in kinds:
            _fuse_gates(graph)


class _Uses:
    """Where the values of one graph come from and how often they are used."""

    def __init__(self, graph: Graph) -> None:
        self._direct = Counter(graph.outputs)
        self._inside: Counter[bytes] = Counter()  # by how many nodes with graphs that use it
        self.producers: dict[bytes, Node] = {}
        for node in graph.nodes:
            self._direct.update(node.inputs)
            self._inside.update({name for inner in node.graphs.values() for name in inner.used()})
            self.producers.update((name, node) for name in node.outputs)

    def once(self, *names: bytes) -> bool:
        """Whether each is used by one node of the graph, once, and nowhere else."""
        return all(self._direct[name] == 1 and not self._inside[name] for name in names)

    def are(self, counts: Mapping[bytes, int]) -> bool:
        """Whether each is used so often by nodes of the graph, and nowhere else."""
        return all(self._direct[name] == n and not self._inside[name] for name, n in counts.items())

    def only_inside_one(self, name: bytes) -> bool:
        """Whether it is used in graphs of one node, and nowhere else."""
        return not self._direct[name] and self._inside[name] == 1


def _fuse_parts(graph: Graph) -> None:
    """Weights whose upper and lower bits are two matrices, as those of 6 bits are."""
    uses = _Uses(graph)
    gone: list[Node] = []
    for place, node in enumerate(graph.nodes):
        parts = [uses.producers.get(name) for name in node.inputs]
        if not _is(node, b"Add") or len(parts) != 2 or not uses.once(*node.inputs):
            continue
        upper, lower = parts
        if upper is None or lower is None or not _is_product(upper) or not _is_product(lower):
            continue
        sizes = [[part.attributes.get(name) for name in (b"N", b"K")] for part in (upper, lower)]
        if upper.input(0) != lower.input(0) or sizes[0] != sizes[1] or lower.input(_BIAS_OF_PRODUCT):
            continue
        graph.nodes[place] = projection = _projection(upper, node.outputs)
        _set_matrix(projection, _LOW, lower, b"_low")
        gone += [upper, lower]
    _remove(graph, gone)


def _fuse_roundings(graph: Graph, known: Constants) -> None:
    """Inputs that are rounded twice."""
    uses = _Uses(graph)
    gone: list[Node] = []
    for place, node in enumerate(graph.nodes):
        base = uses.producers.get(node.input(0))
        if (
            base is None
            or not _is_base(base)
            or not is_sum_of_two(node, known)
            or not uses.once(node.input(0))
        ):
            continue
        sizes = [base.attributes.get(name) for name in (b"block_size", b"K")]
        block_size, columns = (size if isinstance(size, int) else 0 for size in sizes)
        is_other = base.attributes.get(b"block_size_low", block_size) != block_size
        twice = rounded_twice(base.input(0), block_size, columns, uses.producers, known)
        if twice is None or is_other or base.input(_bias_place(base)) or not uses.are(twice.uses):
            continue
        graph.nodes[place] = projection = _projection(base, node.outputs)
        projection.inputs[0] = twice.x
        projection.set_attribute(b"inputs_twice", 1)
        gone += [base, *(uses.producers[name] for name in twice.uses)]
    _remove(graph, gone)


def _bias_place(base: Node) -> int:
    return _BIAS_OF_PRODUCT if _is_product(base) else _BIAS


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A LoRA adapter's two products."""

    down: Node
    up: Node


@dataclasses.dataclass(frozen=True)
class _Adapters:
    """One or two adapters of a projection, the condition under which the first of two is meant, the nodes
    that compute what they add, and the graphs that hold their weights.
    """

    pairs: tuple[_Pair, ...]
    first: bytes
    nodes: tuple[Node, ...]
    holders: tuple[Graph, ...]


def _fuse_adapters(graph: Graph, definitions: Mapping[bytes, int]) -> None:
    uses = _Uses(graph)
    gone: list[Node] = []
    for place, node in enumerate(graph.nodes):
        found = _optional_sum(node, uses) or _plain_sum(node, uses, graph)
        if found is None:
            continue
        base, adapters, inactive = found
        moved = [_weights_of(holder, adapters) for holder in adapters.holders if holder is not graph]
        names = {base.outputs[0], adapters.first or base.outputs[0]}.union(*moved)
        if any(definitions[name] > 1 for name in names):
            continue  # one name, two values: which is meant depends on where it stands
        if not all(_fits(pair, base) for pair in adapters.pairs):
            continue
        for weights in moved:
            graph.initializers.update(weights)
        graph.nodes[place] = projection = _projection(base, node.outputs)
        projection.inputs[_INACTIVE], projection.inputs[_FIRST] = inactive, adapters.first
        for index, pair in enumerate(adapters.pairs):
            for part, (product, name) in enumerate(((pair.down, b"_down%d"), (pair.up, b"_up%d"))):
                _set_matrix(projection, _PAIRS + (2 * index + part) * _MATRIX_INPUTS, product, name % index)
        gone += [base, *adapters.nodes]
    _remove(graph, gone)


def _fits(pair: _Pair, base: Node) -> bool:
    """Whether an adapter's share has the size of what it is added to, which Add itself does not ask."""
    of_base, down, up = base.attributes, pair.down.attributes, pair.up.attributes
    return (
        of_base.get(b"K") == down.get(b"K")
        and down.get(b"N") == up.get(b"K")
        and up.get(b"N") == of_base.get(b"N")
    )


def _weights_of(holder: Graph, adapters: _Adapters) -> dict[bytes, bytes]:
    names = {name for pair in adapters.pairs for product in (pair.down, pair.up) for name in product.inputs}
    return {name: tensor for name, tensor in holder.initializers.items() if name in names}


_Found = tuple[Node, _Adapters, bytes]  # the base, and the condition under which nothing is added


def _optional_sum(node: Node, uses: _Uses) -> _Found | None:
    """If(inactive, base, base + adapters), as wide models have it."""
    same, added = _branches(node)
    if same is None or added is None or len(same.nodes) != 1 or not _is(same.nodes[0], b"Identity"):
        return None
    base = uses.producers.get(same.nodes[0].input(0))
    total = added.nodes[-1] if added.nodes else None
    if base is None or not _is_base(base) or total is None or not uses.only_inside_one(base.outputs[0]):
        return None
    if same.outputs != same.nodes[0].outputs or added.outputs != total.outputs:
        return None
    adapters = _adapters_behind(total, base, _Uses(added), added)
    if adapters is None or len(added.nodes) != len(adapters.nodes) + 1:
        return None
    return base, adapters, node.input(0)


def _plain_sum(node: Node, uses: _Uses, graph: Graph) -> _Found | None:
    """base + adapters, where one of these is always active."""
    for name in node.inputs:
        base = uses.producers.get(name)
        if base is None or not _is_base(base) or not uses.once(name):
            continue
        if adapters := _adapters_behind(node, base, uses, graph):
            return base, adapters, b""
    return None


def _adapters_behind(total: Node, base: Node, uses: _Uses, graph: Graph) -> _Adapters | None:
    """The adapters whose share is added to what `base` computes."""
    summands = set(total.inputs) - {base.outputs[0]}
    if not _is(total, b"Add") or len(total.inputs) != 2 or len(summands) != 1:
        return None
    (share,) = summands
    producer, activations = uses.producers.get(share), base.input(0)
    if producer is None or not uses.once(share):
        return None
    pair = _pair(share, activations, uses)
    if pair is not None:
        return _Adapters((pair,), b"", (pair.down, pair.up), (graph,))
    branches = [branch for branch in _branches(producer) if branch is not None]
    pairs = []
    for branch in branches:
        inside = _Uses(branch)
        pair = _pair(branch.outputs[0], activations, inside) if len(branch.outputs) == 1 else None
        if pair is None or len(branch.nodes) != 2:
            return None
        pairs.append(pair)
    if not pairs:
        return None
    return _Adapters(tuple(pairs), producer.input(0), (producer,), (graph, *branches))


def _pair(share: bytes, activations: bytes, uses: _Uses) -> _Pair | None:
    """The products up(down(activations)) whose result is `share`."""
    up = uses.producers.get(share)
    if up is None or not _is_product(up) or up.input(_BIAS_OF_PRODUCT):
        return None
    down = uses.producers.get(up.input(0))
    if down is None or not _is_product(down) or down.input(_BIAS_OF_PRODUCT):
        return None
    return _Pair(down, up) if down.input(0) == activations and uses.once(down.outputs[0], share) else None


def _fuse_gates(graph: Graph) -> None:
    uses = _Uses(graph)
    gone: list[Node] = []
    for place, consumer in enumerate(graph.nodes):
        gated = uses.producers.get(consumer.input(0))
        if gated is None or not (_is_product(consumer) or _is(consumer, _KIND, DOMAIN)):
            continue
        gate = _gate(gated, uses) if uses.once(consumer.input(0)) else None
        # Halves of 2 and 1 columns have a product, too: the one of 1 goes with both of the other.
        if gate is None or consumer.attributes.get(b"K") == 2:
            continue
        halves, activation, alpha = gate
        graph.nodes[place] = projection = _projection(consumer, consumer.outputs)
        projection.inputs[0] = halves.input(0)
        projection.set_attribute(b"gate_alpha", alpha)
        gone += [halves, activation, gated]
    _remove(graph, gone)


def _gate(node: Node, uses: _Uses) -> tuple[Node, Node, float] | None:
    """The nodes Split and QuickGelu before a product of a gate's activation and its other half, and alpha."""
    if not _is(node, b"Mul") or len(node.inputs) != 2:
        return None
    for activated, other in (node.inputs, node.inputs[::-1]):
        activation, halves = uses.producers.get(activated), uses.producers.get(other)
        if activation is None or halves is None or not _is(activation, b"QuickGelu", b"com.microsoft"):
            continue
        alpha = activation.attributes.get(b"alpha", _USUAL_ALPHA)
        expected = [activation.input(0), other]
        if halves.outputs != expected or not _is_halving(halves) or not uses.once(activated, *expected):
            continue
        if isinstance(alpha, float) and alpha > 0:
            return halves, activation, alpha
    return None


def _is_halving(node: Node) -> bool:
    numbers = {b"axis": -1, b"num_outputs": 2}
    return _is(node, b"Split") and bool(node.input(0)) and not node.input(1) and node.attributes == numbers


def _projection(base: Node, outputs: Sequence[bytes]) -> Node:
    """A node in the place of a product, or of a Projection that is to take in more."""
    node = Node(_KIND, DOMAIN, base.name)
    node.outputs = list(outputs)
    if not _is_product(base):
        node.inputs = list(base.inputs)
        for name, value in base.attributes.items():
            node.set_attribute(name, value)
        return node
    node.inputs = [base.input(0)] + [b""] * (_INPUTS - 1)
    node.inputs[_BIAS] = base.input(_BIAS_OF_PRODUCT)
    _set_matrix(node, _BASE, base, b"")
    return node


def _set_matrix(node: Node, place: int, product: Node, suffix: bytes) -> None:
    """Gives a Projection the matrix of a product: its inputs from `place` on, and its sizes."""
    node.inputs[place : place + _MATRIX_INPUTS] = [product.input(1 + i) for i in range(_MATRIX_INPUTS)]
    for name in SIZES:
        value = product.attributes.get(name, 0)
        assert isinstance(value, int)
        node.set_attribute(name + suffix, value)


def _remove(graph: Graph, gone: Sequence[Node]) -> None:
    known = {id(node) for node in gone}
    graph.nodes = [node for node in graph.nodes if id(node) not in known]


def _branches(node: Node) -> tuple[Graph | None, Graph | None]:
    """What an If computes where its condition holds, and where not."""
    if not _is(node, b"If") or len(node.outputs) != 1 or len(node.graphs) != 2:
        return None, None
    if any(branch.inputs for branch in node.branches.values()):  # which no branch may have
        return None, None
    return node.branches.get(b"then_branch"), node.branches.get(b"else_branch")


def _is_product(node: Node) -> bool:
    return _is(node, PRODUCT, DOMAIN)


def _is_base(node: Node) -> bool:
    """Whether it is a product, or a Projection that has no adapters yet."""
    return _is_product(node) or (_is(node, _KIND, DOMAIN) and not node.input(_PAIRS))


def _is(node: Node, kind: bytes, domain: bytes = b"") -> bool:
    return node.kind == kind and node.domain in ((b"", b"ai.onnx") if not domain else (domain,))
