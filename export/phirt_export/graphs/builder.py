"""A thin builder over onnx_ir: ONNX operators as methods, names from module scope, subgraphs as functions.

Knows nodes, names, frames (a graph or a branch of an If) and where initializers live. Knows nothing of this
model. `g.Add(a, b)` appends a node to the current frame and returns its output; `name=` names node and output
after the scope: `layers.3.attn.qkv`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from phirt_export.graphs.data_file import DataFile

CONTRIB_DOMAIN = "com.microsoft"
OPSET = 21
IR_VERSION = 10
CONTRIB_OPS = frozenset(
    {
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "MultiHeadAttention",
        "QuickGelu",
        "SkipSimplifiedLayerNormalization",
    }
)
# Below this size an array is kept in the .onnx file itself.
_INLINE_BYTES = 1024

Branch = Callable[[], Sequence[ir.Value]]


class Operator(Protocol):
    """One operator: appends a node and returns its output, or a tuple of as many as `outputs` asks for."""

    @overload
    def __call__(
        self, *inputs: ir.Value | None, name: str = "", outputs: Literal[1] = 1, **attributes: Any
    ) -> ir.Value: ...

    @overload
    def __call__(
        self, *inputs: ir.Value | None, name: str = "", outputs: Literal[2], **attributes: Any
    ) -> tuple[ir.Value, ir.Value]: ...

    @overload
    def __call__(
        self, *inputs: ir.Value | None, name: str = "", outputs: Literal[3], **attributes: Any
    ) -> tuple[ir.Value, ir.Value, ir.Value]: ...

    @overload
    def __call__(
        self, *inputs: ir.Value | None, name: str = "", outputs: int, **attributes: Any
    ) -> tuple[ir.Value, ...]: ...


class NodeBuilder:
    """Builds one ONNX model of standard operators in version `opset`, with constants in memory."""

    def __init__(self, name: str, opset: int = OPSET) -> None:
        self.name = name
        self.opset = opset
        self._scope: list[str] = []
        self._names: dict[str, int] = {}
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._root = self._new_graph(name)
        self._frames = [self._root]
        self._outer: dict[object, ir.Value] = {}

    def __getattr__(self, op_type: str) -> Operator:
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def call(*inputs: ir.Value | None, name: str = "", outputs: int = 1, **attributes: Any) -> Any:
            return self._node(op_type, inputs, attributes, name, outputs)

        return call

    def contrib(self, op_type: str, *inputs: ir.Value | None, name: str = "", **attributes: Any) -> ir.Value:
        """One of onnxruntime's own operators that the standard has under the same name."""
        value: ir.Value = self._node(op_type, inputs, attributes, name, 1, CONTRIB_DOMAIN)
        return value

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of what is built inside with `name.`."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input; `dtype` is a numpy name, strings in `shape` are symbolic sizes."""
        value = ir.Value(name=name, type=ir.TensorType(_DTYPES[dtype]), shape=ir.Shape(shape))
        self._root.inputs.append(value)
        self._inputs.append(value)
        self._names[name] = 1
        return value

    def output(self, value: ir.Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Make `value` (a node's output) the graph output `name`."""
        value.name, value.type, value.shape = name, ir.TensorType(_DTYPES[dtype]), ir.Shape(shape)
        self._root.outputs.append(value)
        self._outputs.append(value)

    def constant(self, array: npt.ArrayLike, name: str, dtype: str | None = None) -> ir.Value:
        """An initializer of the current frame."""
        array = np.asarray(array, dtype=dtype, order="C")  # a scalar stays one
        return self._register(ir.tensor(array, name=name), self._frames[-1])

    def initializer(self, tensor: ir.ExternalTensor, outer: bool = False) -> ir.Value:
        """Register a stored tensor under its scoped name: in the current frame, or, if `outer`, in the main
        graph, once for all branches that use the same bytes in the same shape.
        """
        if not outer:
            return self._register(tensor, self._frames[-1])
        key = (tensor.offset, tuple(tensor.shape))
        if key not in self._outer:
            self._outer[key] = self._register(tensor, self._root)
        return self._outer[key]

    def once(self, key: object, build: Callable[[], ir.Value]) -> ir.Value:
        """What `build` makes of weights alone, in the main graph, once for all that ask for the same key."""
        if key not in self._outer:
            inside, self._frames = self._frames, self._frames[:1]
            try:
                self._outer[key] = build()
            finally:
                self._frames = inside
        return self._outer[key]

    def copied(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> tuple[ir.Value, ...]:
        """The outputs of a node of another graph, appended here with these inputs."""
        name, attributes = self._unique(node.op_type.lower()), list(node.attributes.values())
        outputs = len(node.outputs)
        made = self._append(ir.Node("", node.op_type, inputs, attributes, num_outputs=outputs, name=name))
        return (made,) if outputs == 1 else tuple(made)

    def if_else(
        self, condition: ir.Value, then_branch: Branch, else_branch: Branch, name: str
    ) -> list[ir.Value]:
        """The outputs of an If whose branches are what the two functions build; each returns its outputs in
        order.

        Initializers created in a branch belong to it, so that they are no implicit inputs to be passed at run
        time.
        """
        scoped = self._unique(name)
        graphs = [self._branch(f"{scoped}.then", then_branch), self._branch(f"{scoped}.else", else_branch)]
        outputs = len(graphs[0].outputs)
        assert outputs == len(graphs[1].outputs), f"{scoped}: branches differ in their outputs"
        attributes = [ir.AttrGraph("then_branch", graphs[0]), ir.AttrGraph("else_branch", graphs[1])]
        node = ir.Node("", "If", [condition], attributes, num_outputs=outputs, name=scoped)
        self._append(node)
        return list(node.outputs)

    def model(self, producer: str) -> ir.Model:
        """The finished model."""
        assert len(self._frames) == 1
        return ir.Model(self._root, ir_version=IR_VERSION, producer_name=producer)

    @property
    def inputs(self) -> Sequence[ir.Value]:
        """Graph inputs in order of declaration."""
        return self._inputs

    @property
    def outputs(self) -> Sequence[ir.Value]:
        """Graph outputs in order of declaration."""
        return self._outputs

    def _branch(self, name: str, build: Branch) -> ir.Graph:
        graph = self._new_graph(name)
        self._frames.append(graph)
        try:
            graph.outputs.extend(build())
        finally:
            self._frames.pop()
        return graph

    def _new_graph(self, name: str) -> ir.Graph:
        imports = {"": self.opset, CONTRIB_DOMAIN: 1}
        return ir.Graph([], [], nodes=[], opset_imports=imports, name=name)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        name: str,
        outputs: int,
        domain: str | None = None,
    ) -> Any:
        while inputs and inputs[-1] is None:  # an optional input is left out by a name only before others
            inputs = inputs[:-1]
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        if domain is None:
            domain = CONTRIB_DOMAIN if op_type in CONTRIB_OPS else ""
        scoped = self._unique(name or op_type.lower())
        return self._append(ir.Node(domain, op_type, inputs, attrs, num_outputs=outputs, name=scoped))

    def _append(self, node: ir.Node) -> Any:
        self._frames[-1].append(node)
        if len(node.outputs) == 1:
            node.outputs[0].name = f"{node.name}.out"
            return node.outputs[0]
        for i, value in enumerate(node.outputs):
            value.name = f"{node.name}.out{i}"
        return tuple(node.outputs)

    def _register(self, tensor: ir.TensorProtocol, frame: ir.Graph) -> ir.Value:
        tensor.name = self._unique(tensor.name or "tensor")
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        frame.register_initializer(value)
        return value

    def _unique(self, name: str) -> str:
        """The scoped name, numbered from the second use on: names of values are unique across all frames."""
        full = unique = ".".join([*self._scope, name])
        count = self._names.get(full, 0)
        while count and (unique := f"{full}_{count}") in self._names:
            count += 1  # a node of another graph has brought such a name
        self._names[full] = count + 1
        if unique != full:
            self._names.setdefault(unique, 1)
        return unique


class GraphBuilder(NodeBuilder):
    """A NodeBuilder whose large constants lie in `data`."""

    def __init__(self, name: str, data: DataFile) -> None:
        super().__init__(name)
        self.data = data

    def constant(self, array: npt.ArrayLike, name: str, dtype: str | None = None) -> ir.Value:
        """An initializer of the current frame: inline when small, in the data file when large."""
        array = np.asarray(array, dtype=dtype, order="C")
        if array.nbytes <= _INLINE_BYTES:
            return super().constant(array, name)
        extent = self.data.append_array(".".join([*self._scope, name]), array)
        return self.initializer(extent.tensor(name, ir.DataType.from_numpy(array.dtype), array.shape))


_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "uint16": ir.DataType.UINT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
    "bool": ir.DataType.BOOL,
}
