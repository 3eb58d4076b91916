"""Looks at a bundle's graph before onnxruntime does: nothing in it may run without end, or take more time and
memory to open than its weights explain. A bundle may come from a stranger.

Knows which operators an exported graph may hold, how large it may be, and where its weights may lie.
`graph_sizes` knows how large what is computed ahead becomes. Knows nothing of what a graph is for; what is
merely wrong is onnxruntime's to refuse.
"""

from __future__ import annotations

from pathlib import Path

from phirt.bundle.graph_sizes import Computed, GraphSizes, SizeError
from phirt.bundle.manifest import Contents, GraphSpec
from phirt.bundle.onnx_graph import BITS, Graph, Model, Node, Weight, read_model
from phirt.errors import BundleError

# A decoder of 32 layers has some 1,500; onnxruntime opens as many as these in about two seconds.
_MAX_NODES = 8192
_MAX_KERNEL = 4096  # of a convolution or pooling: its width, pads and strides
_KERNEL_ATTRIBUTES = ("kernel_shape", "pads", "output_padding", "output_shape", "dilations", "strides")
# Weights may lie at the same place, but not so often that unpacking them takes many times the bundle's size.
_MAX_REPEATED = 4
_SPARE_BYTES = 64 << 20
# Field numbers of a ModelProto and of a GraphProto that may be there: version, producer, notes, operator
# sets; name, note, inputs and outputs, types, names of metadata.
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 8, 14})
_GRAPH_FIELDS = frozenset({2, 10, 12, 13, 16})

_STANDARD = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "Attention", "AveragePool", "BatchNormalization", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Compress", "Concat", "Constant",
    "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace",
    "DequantizeLinear", "Div", "Dropout", "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp",
    "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LSTM",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization",
    "MatMul", "MatMulInteger", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "NonZero",
    "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
    "RMSNormalization", "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "RotaryEmbedding", "Round", "ScatterElements",
    "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin", "Sinh",
    "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
    "Sum", "Swish", "Tan", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
_CONTRIB = frozenset({
    "Attention", "BiasGelu", "BiasSplitGelu", "DequantizeLinear", "DynamicQuantizeMatMul", "FastGelu",
    "FusedConv", "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "Gelu", "GroupQueryAttention",
    "MatMulBnb4", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MoE", "MultiHeadAttention",
    "QLinearAdd", "QLinearConcat", "QLinearConv", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax",
    "QMoE", "QOrderedMatMul", "QuantizeLinear", "QuickGelu", "RotaryEmbedding",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
# What a provider has compiled ahead, which it alone takes; its content may lie in a file that it names.
_COMPILED, _COMPILING = "EPContext", "qnn"


def check_graph(manifest: Contents, spec: GraphSpec) -> None:
    """Raises BundleError naming what the graph holds that none may hold."""
    path = manifest.path(spec.file)
    model = read_model(path)
    data = {name: manifest.files[name].size for name in spec.data}
    total = manifest.files[spec.file].size + sum(data.values())
    try:
        _Check(data, total, takes_compiled=spec.target == _COMPILING).model(model)
    except (SizeError, _RefusedError) as error:
        raise _not_opened(path, error) from error
    except (ArithmeticError, LookupError, ValueError) as error:  # operands that no operator takes
        raise _not_opened(path, f"a size in it cannot be computed ({error})") from error


def _not_opened(path: Path, cause: object) -> BundleError:
    return BundleError(
        f"{path} is not opened: {cause}; run 'phirt verify', and use bundles of people you trust"
    )


class _RefusedError(Exception):
    """What a graph holds that it may not hold."""


class _Check:
    """Walks over one model, counting."""

    def __init__(self, data: dict[str, int], total: int, *, takes_compiled: bool) -> None:
        self._data = data
        contrib = _CONTRIB | {_COMPILED} if takes_compiled else _CONTRIB
        self._operators = {"": _STANDARD, "ai.onnx": _STANDARD, "com.microsoft": contrib}
        self._sizes = GraphSizes(total)
        self._nodes = 0
        self._weight_bytes = 0
        self._most_weight_bytes = _MAX_REPEATED * total + _SPARE_BYTES

    def model(self, model: Model) -> None:
        if model.other - _MODEL_FIELDS:
            raise _RefusedError("it has functions of its own, or is made for training")
        self._graph(model.graph, {})

    def _graph(self, graph: Graph, outside: dict[str, Computed]) -> None:
        if graph.other - _GRAPH_FIELDS:
            raise _RefusedError("it has sparse weights, or weights with annotations")
        self._nodes += len(graph.nodes)
        if self._nodes > _MAX_NODES:
            raise _RefusedError(f"it has more than {_MAX_NODES} nodes")
        known = outside.copy() if graph.weights or graph.nodes else outside
        for weight in graph.weights.values():
            self._weight(weight)
            known[weight.name] = Computed.of_weight(weight)
        for node in graph.nodes:
            self._node(node, known)

    def _node(self, node: Node, known: dict[str, Computed]) -> None:
        if node.kind not in self._operators.get(node.domain, ()):
            name = f"{node.domain}.{node.kind}".lstrip(".")
            why = ", which may never end" if node.kind in ("Loop", "Scan", "SequenceMap") else ""
            raise _RefusedError(f"it holds the operator {name[:80]!r}{why}")
        if node.unknown and node.kind == "Constant":
            raise _RefusedError(f"a Constant has the attribute {node.unknown[0][:80]!r}")
        if bool(node.graphs) != (node.kind == "If") or len(node.graphs) not in (0, 2):
            raise _RefusedError(f"the operator '{node.kind}' has {len(node.graphs)} graphs inside")
        for name in _KERNEL_ATTRIBUTES:
            if any(abs(value) > _MAX_KERNEL for value in node.integer_lists.get(name, ())):
                raise _RefusedError(f"a {node.kind} has {name} beyond {_MAX_KERNEL}")
        for tensor in node.tensors:
            self._weight(tensor)
        self._sizes.compute(node, known)
        for inner in node.graphs:
            self._graph(inner, known)

    def _weight(self, weight: Weight) -> None:
        shown = repr(weight.name[:80])
        if weight.data_type not in BITS:
            raise _RefusedError(f"weight {shown} is of a type that no weight has ({weight.data_type})")
        self._weight_bytes += weight.nbytes
        if weight.location is None:
            if weight.held < weight.nbytes:
                raise _RefusedError(f"weight {shown} claims {weight.nbytes} bytes and has {weight.held}")
        else:
            size = self._data.get(weight.location)
            if size is None:
                raise _RefusedError(
                    f"weight {shown} lies in {weight.location[:80]!r}, which the manifest does not name"
                )
            length = weight.nbytes if weight.length is None else weight.length
            if weight.offset < 0 or length < weight.nbytes or weight.offset + length > size:
                raise _RefusedError(
                    f"weight {shown} of {weight.nbytes} bytes reaches past the end of {weight.location}"
                )
        if self._weight_bytes > self._most_weight_bytes:
            raise _RefusedError("its weights claim many times the bytes of the bundle's files")
