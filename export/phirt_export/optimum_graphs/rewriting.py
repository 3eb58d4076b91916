"""A traced graph written again by phirt's builder: every node as it is, but for those that hold matrices.

Knows operators that multiply by a matrix or gather its rows, and which others it cannot take over. Knows
nothing of what a graph's inputs and outputs are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.graphs.linear import EmbeddingTable, WeightFormat, WeightStore
from phirt_export.optimum_graphs.weights import TracedWeights, array_of, held_matrix
from phirt_export.published.decoder import EMBEDDING, HEAD

_TABLES = (EMBEDDING, HEAD)
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

# What happens to the input of a node that multiplies by a matrix.
Before = Callable[[ir.Value], ir.Value]


class Rewriting:
    """Appends the nodes of `graph` to the store's builder.

    `matrix` is the format of matrices, `table` that of the token table and the head. Values of the traced
    graph that stand for others are set in `values` before `run`. What `before` has for a node is done to its
    input.
    """

    def __init__(
        self,
        store: WeightStore,
        graph: ir.Graph,
        weights: TracedWeights,
        matrix: WeightFormat,
        table: WeightFormat,
        before: Mapping[ir.Node, Before] | None = None,
    ) -> None:
        self._store, self._g, self._graph = store, store.g, graph
        self._weights, self._matrix = weights, matrix
        self._before = before or {}
        self._table_form = table
        self._table = EmbeddingTable(store, EMBEDDING, table) if EMBEDDING in weights.matrices else None
        self.values: dict[ir.Value, ir.Value] = {}

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
            self.values.update(zip(node.outputs, outputs, strict=True))

    def value(self, traced: ir.Value) -> ir.Value:
        """What stands for a value of the traced graph."""
        if traced not in self.values:
            assert traced.const_value is not None, f"{traced.name} is used before it is computed"
            self.values[traced] = self._g.constant(array_of(traced), str(traced.name))
        return self.values[traced]

    def _copied(self, node: ir.Node) -> tuple[ir.Value, ...]:
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
