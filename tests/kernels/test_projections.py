"""Products with what stands around them in a layer, as one node: where that is done, that it computes what
the nodes compute that it stands for, sums to the bit, and what is left alone.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from kernel_cases import Case, assert_right, make_case
from onnx import TensorProto, helper, numpy_helper

from phirt.bundle.files import load_manifest
from phirt.model import embedded_bundle
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


@pytest.mark.parametrize("rows", [0, 1, 3, 40, 130])
@pytest.mark.parametrize("options", [{}, {"zero_points": True, "bias": True}])
@pytest.mark.parametrize(
    ("shape", "inactive"), [("wide", True), ("wide", False), ("in_parts", False), ("narrow", False)]
)
@pytest.mark.parametrize("first", [True, False])
def test_adapters_give_the_bits_of_their_nodes(library, rows, options, shape, inactive, first):
    given = getattr(Layer(rows, **options), shape)()
    data = fused(given)
    assert kinds(data) == ["Projection"]
    x = values(rows, INNER)
    found = run(data, library, x, inactive, first, threads=2)
    np.testing.assert_array_equal(found, run(one_by_one(given), library, x, inactive, first))
    if rows and not inactive:
        assert np.abs(found - run(data, library, x, inactive, not first)).max() > 0.1


@pytest.mark.parametrize("low_block", [32, 64])
def test_a_base_in_two_parts(library, low_block):
    layer = Layer(8)
    layer.low_block = low_block
    nodes, own = layer.parts()
    nodes[-1].output[0] = "y"
    given = model(nodes, own, INNER)
    data = fused(given)
    assert kinds(data) == ["Projection"]
    x = values(20, INNER)
    np.testing.assert_array_equal(run(data, library, x), run(one_by_one(given), library, x))


@pytest.mark.parametrize("change", ["input", "size", "bias", "use"])
def test_other_sums_of_products_stay(change):
    layer = Layer(8)
    nodes, own = layer.parts()
    nodes[-1].output[0] = "y"
    if change == "input":
        nodes[1].input[0] = "another"
    elif change == "size":
        next(one for one in nodes[1].attribute if one.name == "N").i = 1
    elif change == "bias":
        nodes[1].input.extend(["", "w.scales"])
    given = model(nodes, own, INNER, outputs=("y", "upper") if change == "use" else ("y",))
    assert "Projection" not in kinds(fused(given))


def test_runs_at_the_same_time_do_not_disturb_each_other(library):
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(fused(Layer(2).in_parts()), options, providers=["CPUExecutionProvider"])
    conditions = {"inactive": np.array([False]), "first": np.array([True])}
    given = [values(rows, INNER) for rows in (1, 5, 33, 70)]
    right = [session.run(["y"], {"x": x, **conditions})[0] for x in given]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: session.run(["y"], {"x": x, **conditions})[0], given * 10))
    for one, expected in zip(found, right * 10, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_one_adapter_that_is_always_active(library):
    given = Layer(5).single()
    data = fused(given)
    assert kinds(data) == ["Projection"]
    x = values(7, INNER)
    np.testing.assert_array_equal(run(data, library, x), run(one_by_one(given), library, x))


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 50])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_gated_activation_is_as_defined(library, rows, threads):
    case = make_case(np.random.default_rng(rows), 70, 160, 4, 32, rows, bias=True, gated=True)
    data = fused(gated_layer(case))
    assert kinds(data) == ["Projection"]
    assert_right(case, run(data, library, case.values, threads=threads))


def test_a_gate_of_the_usual_slope_agrees_with_onnxruntime(library):
    """QuickGelu without alpha. One code in 127 may be rounded otherwise here and there."""
    case = make_case(np.random.default_rng(3), 33, 64, 8, 64, 4, gated=True)
    given = gated_layer(case, alpha=None)
    data = fused(given)
    assert kinds(data) == ["Projection"]
    found, right = (run(one, library, case.values) for one in (data, one_by_one(given)))
    assert np.abs(found - right).max() < 0.02 * np.abs(right).max()


def test_gate_and_adapters_become_one_node(library):
    layer = Layer(9)
    given = layer.wide()
    width = 2 * INNER
    gate = [
        helper.make_node("Split", ["both"], ["gate", "up"], axis=-1, num_outputs=2),
        helper.make_node("QuickGelu", ["gate"], ["activated"], domain="com.microsoft", alpha=1.0),
        helper.make_node("Mul", ["activated", "up"], ["x"]),
    ]
    nodes = [*gate, *given.graph.node]
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    given.graph.input[0].CopyFrom(helper.make_tensor_value_info("both", TensorProto.FLOAT, ["rows", width]))
    data = fused(given)
    assert kinds(data) == ["Projection"]
    both = values(6, width)
    gates, factors = np.split(both.astype(np.float64), 2, axis=1)
    x = (gates / (1 + np.exp(-gates)) * factors).astype(np.float32)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    for first in (True, False):
        feed = {"both": both, "inactive": np.array([False]), "first": np.array([first])}
        (found,) = session.run(["y"], feed)
        right = run(one_by_one(layer.wide()), library, x, first=first)
        assert np.abs(found - right).max() < 0.02 * np.abs(right).max()


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_that_are_rounded_twice_are_as_defined(library, rows, bits):
    case = make_case(np.random.default_rng(rows), 70, 192, bits, 64, rows, bits == 8, twice=True)
    data = fused(twice_rounded_layer(case))
    assert kinds(data) == ["Projection"]
    assert_right(case, run(data, library, case.values[None], threads=2)[0])


@pytest.mark.parametrize(("low_block", "is_taken"), [(64, True), (32, False)])
def test_both_parts_of_weights_have_inputs_that_are_rounded_twice(library, low_block, is_taken):
    rng = np.random.default_rng(1)
    case, low = (make_case(rng, 40, 192, *form, 3) for form in ((4, 64), (2, low_block)))
    given = twice_rounded_layer(case, low)
    data = fused(given)
    assert (kinds(data) == ["Projection"]) == is_taken
    found, right = (run(one, library, case.values[None]) for one in (data, one_by_one(given)))
    assert np.abs(found - right).max() < 1e-4 * np.abs(right).max()


def test_a_batch_that_would_be_added_up_is_refused(library):
    case = make_case(np.random.default_rng(1), 40, 192, 4, 64, 3)
    with pytest.raises(Exception, match=r"A is no \[1, rows, columns\]"):
        run(fused(twice_rounded_layer(case)), library, np.stack([case.values, case.values]))


@pytest.mark.parametrize("name", ["share", "least", "last", "in_blocks", "in_rows", "first_axis"])
def test_other_numbers_stay(name):
    given = twice_rounded_layer(make_case(np.random.default_rng(1), 40, 192, 4, 64, 3))
    (constant,) = (one for one in given.graph.initializer if one.name == name)
    array = numpy_helper.to_array(constant)
    constant.CopyFrom(numpy_helper.from_array(np.asarray(array * 2 + 1).astype(array.dtype), name))
    assert "Projection" not in kinds(fused(given))


@pytest.mark.parametrize("place", range(12))
def test_roundings_of_which_something_is_used_elsewhere_stay(place):
    given = twice_rounded_layer(make_case(np.random.default_rng(1), 40, 192, 4, 64, 3))
    _another_use(given, given.graph.node[place].output[0])
    assert "Projection" not in kinds(fused(given))


@pytest.mark.parametrize("place", [*range(11), 12])
def test_other_roundings_stay(place):
    given = twice_rounded_layer(make_case(np.random.default_rng(1), 40, 192, 4, 64, 3))
    given.graph.node[place].op_type = "Other"
    assert "Projection" not in kinds(fused(given))


@pytest.mark.parametrize(
    ("place", "inputs"),
    [
        (1, ["rounded"]),  # magnitudes of something else
        (5, ["rounded", "step"]),
        (5, ["blocks", "top"]),
        (7, ["levels", "top"]),
        (8, ["rounded", "blocks"]),
        (8, ["blocks", "levels"]),
        (9, ["rest", "rounded"]),
    ],
)
def test_roundings_of_other_values_stay(place, inputs):
    given = twice_rounded_layer(make_case(np.random.default_rng(1), 40, 192, 4, 64, 3))
    given.graph.node[place].input[:] = inputs
    assert "Projection" not in kinds(fused(given))


@pytest.mark.parametrize(
    ("place", "attribute"),
    [(0, "allowzero"), (2, "keepdims"), (9, "axis"), (10, "allowzero"), (12, "keepdims")],
)
def test_roundings_with_other_attributes_stay(place, attribute):
    given = twice_rounded_layer(make_case(np.random.default_rng(1), 40, 192, 4, 64, 3))
    node = given.graph.node[place]
    known = {one.name: one.i for one in node.attribute}
    del node.attribute[:]
    node.attribute.append(helper.make_attribute(attribute, 1 - known.get(attribute, 0)))
    assert "Projection" not in kinds(fused(given))


def test_a_bias_that_would_be_added_twice_stays():
    given = twice_rounded_layer(make_case(np.random.default_rng(1), 40, 192, 4, 64, 3, bias=True))
    assert "Projection" not in kinds(fused(given))


@pytest.mark.parametrize("change", ["elsewhere", "rank", "again"])
def test_constants_that_may_be_others_are_not_trusted(change):
    given = twice_rounded_layer(make_case(np.random.default_rng(1), 40, 192, 4, 64, 3))
    (share,) = (one for one in given.graph.initializer if one.name == "share")
    if change == "elsewhere":
        share.data_location = TensorProto.EXTERNAL
        share.external_data.add(key="location", value="decoder.data")
    elif change == "rank":
        share.dims[:] = [1] * 5
    else:
        inside = graph(
            [helper.make_node("Neg", ["share"], ["n"])],
            "n",
            [numpy_helper.from_array(np.float32(2), "share")],
        )
        given.graph.node.append(
            helper.make_node("If", ["first"], ["other"], then_branch=inside, else_branch=inside)
        )
    assert "Projection" not in kinds(fused(given))


def test_inputs_that_are_gated_and_rounded_twice_and_have_adapters(library):
    """All at once, beside the nodes one by one."""
    layer = Layer(9)
    layer.base = make_case(np.random.default_rng(2), COLUMNS, INNER, 4, 64, 1)
    given = twice_rounded_layer(layer.base)
    nodes = [
        helper.make_node("Split", ["both"], ["gate", "up"], axis=-1, num_outputs=2),
        helper.make_node("QuickGelu", ["gate"], ["activated"], domain="com.microsoft", alpha=1.0),
        helper.make_node("Mul", ["activated", "up"], ["x"]),
        *given.graph.node,
        layer.share(),
        helper.make_node("Add", ["base", "share"], ["y"]),
    ]
    names = {"both": "halves", "up": "factors", "share": "adapted"}  # of which the rounding has some, too
    for node in (*nodes[:3], *nodes[-2:]):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    nodes[-3].output[0] = "base"
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    given.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("halves", TensorProto.FLOAT, [1, "rows", 2 * INNER])
    )
    data = fused(given)
    assert kinds(data) == ["Projection"]
    feed = {"halves": values(6, 2 * INNER)[None], "inactive": np.array([False])}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library))
    for first in (True, False):
        found, right = (
            ort.InferenceSession(one, options, providers=["CPUExecutionProvider"]).run(
                ["y"], {**feed, "first": np.array([first])}
            )[0]
            for one in (data, one_by_one(given))
        )
        # An adapter's inputs are rounded once: one code in 127 may be another.
        assert np.abs(found - right).max() < 0.01 * np.abs(right).max()


def _another_use(given: onnx.ModelProto, name: str) -> None:
    given.graph.node.append(helper.make_node("Neg", [name], ["other"]))
    given.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))


def _as_output(given: onnx.ModelProto, name: str) -> None:
    given.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _inside(given: onnx.ModelProto, name: str) -> None:
    branches = {
        f"{kind}_branch": graph([helper.make_node("Neg", [name], [kind])], kind) for kind in ("then", "else")
    }
    given.graph.node.append(helper.make_node("If", ["first"], ["other"], **branches))
    given.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))


@pytest.mark.parametrize("use", [_another_use, _as_output, _inside])
@pytest.mark.parametrize("name", ["gate", "up", "activated", "gated"])
def test_halves_that_are_used_elsewhere_stay(library, use, name):
    case = make_case(np.random.default_rng(1), 20, 64, 4, 32, 2, gated=True)
    given = gated_layer(case)
    use(given, name)
    assert kinds(fused(given))[:4] == ["Split", "QuickGelu", "Mul", "MatMulNBits"]
    assert_right(case, run(fused(given), library, case.values))


@pytest.mark.parametrize("use", [_another_use, _as_output, _inside])
@pytest.mark.parametrize(("shape", "name"), [("wide", "base"), ("narrow", "base"), ("narrow", "share")])
def test_sums_that_are_used_elsewhere_stay(library, use, shape, name):
    given = getattr(Layer(2), shape)()
    use(given, name)
    assert "Projection" not in kinds(fused(given))
    x = values(3, INNER)
    np.testing.assert_array_equal(run(fused(given), library, x), run(one_by_one(given), library, x))


def _split(given: onnx.ModelProto, **attributes: int) -> None:
    given.graph.node[0].CopyFrom(helper.make_node("Split", ["x"], ["gate", "up"], **attributes))


def _sigmoid(given: onnx.ModelProto) -> None:
    given.graph.node[1].CopyFrom(helper.make_node("Sigmoid", ["gate"], ["activated"]))


def _swapped(given: onnx.ModelProto) -> None:
    given.graph.node[0].output[:] = ["up", "gate"]


def _float_product(given: onnx.ModelProto) -> None:
    for attribute in given.graph.node[3].attribute:
        if attribute.name == "accuracy_level":
            attribute.i = 1
    given.graph.node.append(product(make_case(np.random.default_rng(1), 20, 64, 4, 32, 2), "w", "y2", "z"))
    given.graph.node.append(helper.make_node("Concat", ["y", "y", "y", "y"], ["y2"], axis=-1))


@pytest.mark.parametrize(
    "change",
    [
        lambda given: _split(given, axis=0, num_outputs=2),
        lambda given: _split(given, axis=1, num_outputs=2),
        lambda given: _split(given, axis=-1),
        _sigmoid,
        _swapped,
        _float_product,
    ],
)  # fmt: skip
def test_other_activations_stay(change):
    given = gated_layer(make_case(np.random.default_rng(1), 20, 64, 4, 32, 2, gated=True))
    change(given)
    assert "Projection" not in kinds(fused(given))


def _biased_up(given: onnx.ModelProto, layer: Layer) -> None:
    given.graph.node[1].attribute[0].g.node[1].input.extend(["", "bias"])


def _of_another(given: onnx.ModelProto, layer: Layer) -> None:
    given.graph.node[1].attribute[0].g.node[0].input[0] = "another"


def _three_nodes(given: onnx.ModelProto, layer: Layer) -> None:
    branch = given.graph.node[1].attribute[0].g
    branch.node.append(helper.make_node("Neg", [branch.output[0].name], ["negative"]))
    branch.output[0].name = "negative"


def _subtracted(given: onnx.ModelProto, layer: Layer) -> None:
    given.graph.node[2].op_type = "Sub"


def _names_twice(given: onnx.ModelProto, layer: Layer) -> None:
    """The branches' weights have the same names."""
    for attribute in given.graph.node[1].attribute:
        for tensor in attribute.g.initializer:
            tensor.name = tensor.name.replace("0", "").replace("1", "")
        for node in attribute.g.node:
            node.input[1:] = [name.replace("0", "").replace("1", "") for name in node.input[1:]]


@pytest.mark.parametrize("change", [_biased_up, _of_another, _three_nodes, _subtracted, _names_twice])
def test_other_sums_stay(change):
    layer = Layer(4)
    given = layer.narrow()
    change(given, layer)
    assert "Projection" not in kinds(fused(given))


def test_an_adapter_of_one_column_is_added_to_all_of_them(library):
    """As Add has it, and no Projection."""
    layer = Layer(6)
    rng = np.random.default_rng(0)
    layer.pairs = [(down, make_case(rng, 1, down.columns, 4, 16, 1)) for down, _ in layer.pairs]
    given = layer.narrow()
    assert "Projection" not in kinds(fused(given))
    x = values(2, INNER)
    np.testing.assert_array_equal(run(fused(given), library, x), run(one_by_one(given), library, x))


def test_sizes_that_do_not_fit_are_refused(library):
    """Which no graph that is fused has."""
    for suffix, message in (
        ("_up0", "an adapter's sizes do not fit"),
        ("_low", "the sizes of low do not fit"),
    ):
        read = onnx.load_from_string(fused(Layer(6).in_parts()))
        (projection,) = read.graph.node
        size = next(one for one in projection.attribute if one.name == f"N{suffix}")
        size.i = 8
        place = {"_up0": 13, "_low": 5}[suffix]
        for tensor in read.graph.initializer:
            if tensor.name in projection.input[place : place + 2]:
                array = numpy_helper.to_array(tensor)[:8]
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        with pytest.raises(Exception, match=message):
            run(read.SerializeToString(), library, values(1, INNER))


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_names_that_mean_another_value_inside_are_left_alone(library, branch):
    given = Layer(3).wide()
    (inside,) = (one.g for one in given.graph.node[1].attribute if one.name == branch)
    inside.initializer.append(numpy_helper.from_array(np.full((1, COLUMNS), 100, np.float32), "base"))
    assert "Projection" not in kinds(fused(given))


def test_an_attribute_without_its_value_is_zero(library):
    """As onnxruntime reads it; a sigmoid of nothing is one half."""
    case = make_case(np.random.default_rng(3), 33, 64, 8, 64, 4, gated=True)
    given = gated_layer(case)
    (alpha,) = given.graph.node[1].attribute
    alpha.ClearField("f")
    assert "Projection" not in kinds(fused(given))


def test_activations_of_another_width_are_refused(library):
    case = make_case(np.random.default_rng(1), 20, 64, 4, 32, 2, gated=True)
    given = gated_layer(case)
    given.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "width"]))
    with pytest.raises(Exception, match="A has not as many columns as K says"):
        run(fused(given), library, values(2, 64))


def test_layers_of_an_export_are_taken(nano):
    """All projections that have adapters, and the gate of those that have none."""
    manifest = load_manifest(nano)
    (file,) = (spec.file for name, spec in manifest.graphs.items() if name == "decoder")
    read = Model.read(fused(onnx.load(nano / file, load_external_data=False)))
    found = [node for graph in read.graphs[0].all_graphs() for node in graph.nodes]
    projections = [node for node in found if node.kind == b"Projection"]
    layers = manifest.geometry.num_layers
    assert len(projections) == 4 * layers + layers  # of the stack with adapters, and of the one without
    assert sum("gate_alpha" in str(node.attributes.keys()) for node in projections) == 2 * layers
    assert not any(node.kind in (b"QuickGelu", b"Add") for node in found)


def test_layers_of_weights_in_several_formats_are_taken():
    """Those of the embedded model, whose inputs are rounded twice in places."""
    bundle = embedded_bundle()
    given = Model.read((bundle / load_manifest(bundle).graphs["decoder"].file).read_bytes())
    before, after = Counter(), Counter()
    for counted, read in ((before, given), (after, Model.read(fused_bytes(given.written())))):
        counted.update(node.kind for graph in read.graphs[0].all_graphs() for node in graph.nodes)
    assert before[b"Round"] and before[b"QuickGelu"]
    assert not any(after[kind] for kind in (b"Round", b"ReduceSum", b"QuickGelu"))
