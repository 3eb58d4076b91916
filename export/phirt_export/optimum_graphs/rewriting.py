"""A traced graph written again by phirt's builder: every node as it is, but for those that hold matrices.

Knows operators that multiply by a matrix or gather its rows, and which others it cannot take over. Knows
nothing of what a graph's inputs and outputs are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.graphs.embedding_table import EmbeddingTable
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.optimum_graphs.weights import TracedWeights, array_of, held_matrix
from phirt_export.published.decoder import EMBEDDING, HEAD

_TABLES = (EMBEDDING, HEAD)
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

# What stands for an input of the traced graph, made where it is first used.
Given = Callable[[], ir.Value]
# What happens to the input of a node that multiplies by a matrix.
Before = Callable[[ir.Value], ir.Value]
# What a node becomes, given what stands for values of the traced graph.
Instead = Callable[[Callable[[ir.Value], ir.Value]], ir.Value]


class Rewriting:
    """Appends the nodes of `graph` to the store's builder.

    `matrix` is the format of matrices, `table` that of the token table and the head. `given` has what stands
    for the inputs of the traced graph. What `before` has for a node is done to its input; what `instead` has
    takes its place.
    """

    def __init__(
        self,
        store: WeightStore,
        graph: ir.Graph,
        weights: TracedWeights,
        matrix: WeightFormat,
        table: WeightFormat,
        given: Mapping[str, Given],
        before: Mapping[ir.Node, Before] | None = None,
        instead: Mapping[ir.Node, Instead] | None = None,
    ) -> None:
        self._store, self._g, self._graph = store, store.g, graph
        self._weights, self._matrix = weights, matrix
        self._given, self._before, self._instead = given, before or {}, instead or {}
        self._table_form = table
        self._table = EmbeddingTable(store, EMBEDDING, table) if EMBEDDING in weights.matrices else None
        self._values: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """All nodes, in order."""
        for node in self._graph:
            if node.domain or any(a.type in _GRAPHS for a in node.attributes.values()):
                raise ConfigError(
                    f"the traced model needs the operator {node.domain or 'ai.onnx'}.{node.op_type}, which "
                    "no bundle may hold; only models without control flow of their own can be exported"
                )
            matrix = held_matrix(node)
            name = None if matrix is None else self._weights.names.get(matrix)
            outputs = (self._product(node, name),) if name is not None else self._copied(node)
            self._values.update(zip(node.outputs, outputs, strict=True))

    def value(self, traced: ir.Value) -> ir.Value:
        """What stands for a value of the traced graph."""
        if traced not in self._values:
            if traced.const_value is not None:
                self._values[traced] = self._g.constant(array_of(traced), str(traced.name))
            else:
                self._values[traced] = self._given[str(traced.name)]()
        return self._values[traced]

    def _copied(self, node: ir.Node) -> tuple[ir.Value, ...]:
        if node in self._instead:
            return (self._instead[node](self.value),)
        return self._g.copied(node, [None if one is None else self.value(one) for one in node.inputs])

    def _product(self, node: ir.Node, name: str) -> ir.Value:
        """The node with its matrix in the store's format."""
        if node.op_type == "Gather":
            rows = node.inputs[1]
            assert rows is not None and self._table is not None
            return self._table.embed(self.value(rows))
        given = node.inputs[0]
        assert given is not None
        x = self.value(given)
        if node in self._before:
            x = self._before[node](x)
        if name == EMBEDDING and node.op_type == "MatMul" and self._table is not None:
            return self._table.score(x)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        form = self._table_form if name in _TABLES else self._matrix
        array = None if bias is None else array_of(bias)
        return self._store.linear(x, name, form, name, bias=array)
