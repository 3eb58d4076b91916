"""A builder of graphs whose weights stay where they are: in memory, in another bundle's file, or not computed
before they are asked for.

Knows values, nodes and what is used of them. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from phirt_export.graphs.builder import NodeBuilder

# Standard operators in the forms that are used here: RMSNormalization and RotaryEmbedding came with it.
STATIC_OPSET = 23
_IR_VERSIONS = {21: 10, 23: 11}


class Emitter(NodeBuilder):
    """A NodeBuilder that takes over nodes and weights of other graphs."""

    def __init__(self, name: str, opset: int) -> None:
        super().__init__(name, opset)
        self._kept: dict[int, tuple[ir.TensorProtocol, ir.Value]] = {}

    def constant(self, array: npt.ArrayLike, name: str, dtype: str | None = None) -> ir.Value:
        """An initializer of the main graph, also where a branch uses it."""
        return self._register(ir.tensor(np.asarray(array, dtype=dtype, order="C"), name=name), self._root)

    def keep(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """An initializer of the main graph with this value, once for all that ask for the same tensor. Its
        name is as it is given, behind no scope.
        """
        if id(tensor) not in self._kept:
            scope, self._scope = self._scope, []
            unique = self._unique(name)
            self._scope = scope
            value = ir.Value(
                name=unique,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=_named(tensor, unique),
            )
            self._root.register_initializer(value)
            self._kept[id(tensor)] = tensor, value  # kept alive, so that its id stays its own
        return self._kept[id(tensor)][1]

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        """A node of another graph, that holds no graphs itself, over these inputs."""
        made = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()),
            num_outputs=len(node.outputs), name=self._unique(node.name or node.op_type.lower()),
        )  # fmt: skip
        self._append(made)
        for value, old in zip(made.outputs, node.outputs, strict=True):
            if not old.name:
                value.name = ""  # an optional output that nobody wants
        return made.outputs

    def finished(self, producer: str) -> ir.Model:
        """The model, without nodes and initializers that nothing needs."""
        prune(self._root)
        return ir.Model(self._root, ir_version=_IR_VERSIONS[self.opset], producer_name=producer)


def prune(graph: ir.Graph) -> None:
    """Removes what contributes to no output of the main graph, in branches too."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            continue
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                prune(attribute.as_graph())
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def dims(value: ir.Value) -> list[int]:
    """The sizes of a value all of whose sizes are known."""
    found = []
    for size in value.shape or ():
        assert isinstance(size, int), f"{value.name} is of any size"
        found.append(size)
    return found


def _named(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same tensor under another name; the old one stays as it is."""
    if tensor.name == name:
        return tensor
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name,
            base_dir=tensor.base_dir,
        )  # fmt: skip
    return ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name)
