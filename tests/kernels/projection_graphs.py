"""Graphs with products and what stands around them, as exports write them, and what is made of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from kernel_cases import Case, make_case
from onnx import TensorProto, helper, numpy_helper

from phirt.runtime.editable_graph import Model
from phirt.runtime.kernel_nodes import DOMAIN, take_nodes
from phirt.runtime.kernels import with_kernels
from phirt.runtime.ort import ort

INNER, COLUMNS, RANKS = 128, 80, (16, 24)
Nodes = list[onnx.NodeProto]


def weights(case: Case, name: str) -> list[onnx.TensorProto]:
    arrays = {"codes": case.codes, "scales": case.scales, "zeros": case.zero_points, "bias": case.bias}
    return [numpy_helper.from_array(a, f"{name}.{kind}") for kind, a in arrays.items() if a is not None]


def product(case: Case, name: str, x: str, out: str) -> onnx.NodeProto:
    zeros = f"{name}.zeros" if case.zero_points is not None else ""
    bias = ["", f"{name}.bias"] if case.bias is not None else []
    sizes = {"K": case.inner, "N": case.columns, "bits": case.bits, "block_size": case.block_size}
    names = [x, f"{name}.codes", f"{name}.scales", zeros, *bias]
    return helper.make_node(
        "MatMulNBits", names, [out], name, domain="com.microsoft", accuracy_level=4, **sizes
    )


def graph(nodes: Nodes, output: str, initializers=(), inputs=()) -> onnx.GraphProto:
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, "g", list(inputs), outputs, list(initializers))


def model(nodes: Nodes, initializers: list[onnx.TensorProto], width: int, outputs=("y",)) -> onnx.ModelProto:
    conditions = [
        helper.make_tensor_value_info(name, TensorProto.BOOL, [1]) for name in ("inactive", "first")
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])
    outer = graph(nodes, outputs[0], initializers, [x, *conditions])
    outer.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(outer, opset_imports=opsets, ir_version=10)


class Layer:
    """A projection with two adapters, in the two shapes that exports have."""

    low_block = 32

    def __init__(self, seed: int = 0, **base: bool) -> None:
        rng = np.random.default_rng(seed)
        self.base = make_case(rng, COLUMNS, INNER, 4, 32, 1, **base)
        self.pairs = [
            (make_case(rng, rank, INNER, 4, block, 1), make_case(rng, COLUMNS, rank, 4, 16, 1))
            for rank, block in zip(RANKS, (32, 64), strict=True)
        ]

    def pair(self, index: int, x: str = "x") -> tuple[Nodes, list[onnx.TensorProto]]:
        """Its nodes, which compute `part<index>`, and its weights."""
        (down, up), low = self.pairs[index], f"low{index}"
        nodes = [product(down, f"down{index}", x, low), product(up, f"up{index}", low, f"part{index}")]
        return nodes, weights(down, f"down{index}") + weights(up, f"up{index}")

    def share(self) -> onnx.NodeProto:
        """What the adapter adds that `first` chooses."""
        branches = [graph(nodes, f"part{i}", own) for i, (nodes, own) in enumerate(map(self.pair, (0, 1)))]
        return helper.make_node("If", ["first"], ["share"], then_branch=branches[0], else_branch=branches[1])

    def parts(self) -> tuple[Nodes, list[onnx.TensorProto]]:
        """The base in two parts, as weights of 6 bits are: nodes that compute `base`, and the weights."""
        low = make_case(np.random.default_rng(7), COLUMNS, INNER, 2, self.low_block, 1)
        nodes = [
            product(self.base, "w", "x", "upper"),
            product(low, "low", "x", "lower"),
            helper.make_node("Add", ["upper", "lower"], ["base"]),
        ]
        return nodes, weights(self.base, "w") + weights(low, "low")

    def wide(self) -> onnx.ModelProto:
        """One If around all that adapters compute."""
        same = graph([helper.make_node("Identity", ["base"], ["same"])], "same")
        added = graph([self.share(), helper.make_node("Add", ["base", "share"], ["sum"])], "sum")
        choice = helper.make_node("If", ["inactive"], ["y"], then_branch=same, else_branch=added)
        return model([product(self.base, "w", "x", "base"), choice], weights(self.base, "w"), INNER)

    def in_parts(self) -> onnx.ModelProto:
        """The same, over a base in two parts."""
        whole, (nodes, own) = self.wide(), self.parts()
        nodes.append(whole.graph.node[1])
        return model(nodes, own, INNER)

    def narrow(self) -> onnx.ModelProto:
        """Adapters one of which is active."""
        add = helper.make_node("Add", ["base", "share"], ["y"])
        nodes = [product(self.base, "w", "x", "base"), self.share(), add]
        return model(nodes, weights(self.base, "w"), INNER)

    def single(self) -> onnx.ModelProto:
        """One adapter that is always active."""
        nodes, own = self.pair(1)
        add = helper.make_node("Add", ["part1", "base"], ["y"])
        return model(
            [product(self.base, "w", "x", "base"), *nodes, add], weights(self.base, "w") + own, INNER
        )


def gated_layer(case: Case, alpha: float | None = 1.0) -> onnx.ModelProto:
    known = {} if alpha is None else {"alpha": alpha}
    nodes = [
        helper.make_node("Split", ["x"], ["gate", "up"], axis=-1, num_outputs=2),
        helper.make_node("QuickGelu", ["gate"], ["activated"], domain="com.microsoft", **known),
        helper.make_node("Mul", ["activated", "up"], ["gated"]),
        product(case, "w", "gated", "y"),
    ]
    return model(nodes, weights(case, "w"), 2 * case.inner)


def twice_rounded_layer(case: Case, low: Case | None = None) -> onnx.ModelProto:
    """As an export has it: what rounding leaves of the inputs is multiplied as well."""
    constants = {
        "in_blocks": np.array([0, 0, -1, case.block_size]),
        "in_rows": np.array([0, 0, case.inner]),
        "last": np.array([3]),
        "first_axis": np.array([0]),
        "share": np.float32(1 / 127),
        "least": np.float32(1e-30),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "in_blocks"], ["blocks"]),
        helper.make_node("Abs", ["blocks"], ["size"]),
        helper.make_node("ReduceMax", ["size", "last"], ["top"], keepdims=1),
        helper.make_node("Mul", ["top", "share"], ["part"]),
        helper.make_node("Max", ["part", "least"], ["step"]),
        helper.make_node("Div", ["blocks", "step"], ["steps"]),
        helper.make_node("Round", ["steps"], ["levels"]),
        helper.make_node("Mul", ["levels", "step"], ["rounded"]),
        helper.make_node("Sub", ["blocks", "rounded"], ["rest"]),
        helper.make_node("Concat", ["rounded", "rest"], ["both"], axis=0),
        helper.make_node("Reshape", ["both", "in_rows"], ["pair"]),
        product(case, "w", "pair", "upper"),
    ]
    own = weights(case, "w") + [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    if low is not None:
        nodes.append(product(low, "low", "pair", "lower"))
        nodes.append(helper.make_node("Add", ["upper", "lower"], ["products"]))
        own += weights(low, "low")
    summed = "upper" if low is None else "products"
    nodes.append(helper.make_node("ReduceSum", [summed, "first_axis"], ["y"], keepdims=1))
    given = model(nodes, own, case.inner)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", case.inner])
    given.graph.input[0].CopyFrom(x)
    return given


def kinds(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


def fused(given: onnx.ModelProto) -> bytes:
    return fused_bytes(given.SerializeToString())


def fused_bytes(given: bytes) -> bytes:
    data = with_kernels(given)
    assert data is not None
    onnx.load_from_string(data)
    return data


def one_by_one(given: onnx.ModelProto) -> bytes:
    """The same operators, none of them fused."""
    read = Model.read(given.SerializeToString())
    assert take_nodes(read.graphs[0])
    read.add_domain(DOMAIN)
    return read.written()


def run(data: bytes, library: Path, x: np.ndarray, inactive=False, first=True, threads=1) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # conditions that a graph does not use are no concern here
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feed = {"x": x, "inactive": np.array([inactive]), "first": np.array([first])}
    return np.asarray(session.run(["y"], feed)[0])


def values(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, width), np.float32)


def another_use(given: onnx.ModelProto, name: str) -> None:
    given.graph.node.append(helper.make_node("Neg", [name], ["other"]))
    given.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
