"""The weights of a traced graph as matrices that phirt's formats store.

Knows in which orientation operators hold a matrix, and that a head which is the transposed token table is the
same matrix. Knows nothing of formats.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.published.decoder import EMBEDDING, HEAD

_SMALLEST = 32  # rows and columns from which on a matrix is stored as one, and may be quantized


@dataclasses.dataclass(frozen=True)
class TracedMatrix:
    """A matrix [N, K] in the traced graph, which holds it transposed or as it is."""

    value: ir.Value
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = _sizes(self.value)
        return (columns, rows) if self.transposed else (rows, columns)

    def array(self) -> np.ndarray:
        """The matrix, a view of what the graph holds."""
        array = array_of(self.value)
        return array.T if self.transposed else array


class TracedWeights:
    """A weight source (see `WeightSource`) over the matrices of one traced graph.

    `names` has the name of the matrix that an initializer is: its own, but for the token table and the head,
    which have the names that phirt's own models give them.
    """

    def __init__(self, graph: ir.Graph, vocab_size: int) -> None:
        self.matrices: dict[str, TracedMatrix] = {}
        self.names: dict[ir.Value, str] = {}
        for node in graph:
            self._note(node, vocab_size)

    def shape(self, name: str) -> tuple[int, ...]:
        """(N, K)."""
        return self.matrices[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1."""
        return _finite(np.ascontiguousarray(self.matrices[name].array()[start:stop]), name)

    def tensor(self, name: str) -> np.ndarray:
        """All of it."""
        return _finite(np.ascontiguousarray(self.matrices[name].array()), name)

    def count(self, graph: ir.Graph) -> int:
        """Floats that the graph holds, a tied head counted once."""
        total = 0
        for value in graph.initializers.values():
            name = self.names.get(value)
            is_copy = name is not None and self.matrices[name].value is not value
            if value.dtype == ir.DataType.FLOAT and value.const_value is not None and not is_copy:
                total += value.const_value.size
        return total

    def _note(self, node: ir.Node, vocab_size: int) -> None:
        value = held_matrix(node)
        if value is None or value in self.names:
            return
        matrix = TracedMatrix(value, is_transposed(node))
        table = self.matrices.get(EMBEDDING)
        name = str(value.name)
        if matrix.shape[0] == vocab_size:
            if node.op_type == "Gather" and table is None:
                name = EMBEDDING
            elif table is not None and _is_same(matrix, table):
                self.names[value] = EMBEDDING
                return
            elif HEAD not in self.matrices and node.op_type != "Gather":
                name = HEAD
        elif node.op_type == "Gather":  # positions and kinds of tokens: few rows, kept as they are
            return
        self.names[value] = name
        self.matrices[name] = matrix


def held_matrix(node: ir.Node) -> ir.Value | None:
    """The initializer that a node multiplies by, or gathers rows of, where it is a matrix of some size."""
    place = {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
    if place is None or (node.op_type == "Gemm" and not _is_plain_product(node)):
        return None
    if node.op_type == "Gather" and _integer(node, "axis", 0) != 0:
        return None
    value = node.inputs[place]
    if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
        return None
    sizes = value.const_value.shape.numpy()
    return value if len(sizes) == 2 and min(sizes) >= _SMALLEST else None


def is_transposed(node: ir.Node) -> bool:
    """Whether a node of `held_matrix` holds it as [K, N]."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not _integer(node, "transB", 0))


def array_of(value: ir.Value) -> np.ndarray:
    """What an initializer holds."""
    assert value.const_value is not None
    return value.const_value.numpy()


def _is_plain_product(node: ir.Node) -> bool:
    """A Gemm of the form x W + b, b with one element a column."""
    scales = [node.attributes.get(name) for name in ("alpha", "beta")]
    if _integer(node, "transA", 0) or any(s is not None and s.as_float() != 1.0 for s in scales):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or (bias.const_value is not None and len(bias.const_value.shape) == 1)


def _integer(node: ir.Node, name: str, absent: int) -> int:
    attribute = node.attributes.get(name)
    return absent if attribute is None else attribute.as_int()


def _is_same(one: TracedMatrix, other: TracedMatrix) -> bool:
    return one.shape == other.shape and np.array_equal(one.array(), other.array())


def _sizes(value: ir.Value) -> tuple[int, int]:
    assert value.const_value is not None
    rows, columns = value.const_value.shape.numpy()
    return rows, columns


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ConfigError(f"tensor {name} of the traced model has values that are no numbers; fetch it again")
    return values
