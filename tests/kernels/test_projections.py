"""Products with what stands around them in a layer, as one node: where that is done, that it computes what
the nodes compute that it stands for, sums to the bit, and what is left alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from kernel_cases import assert_right, make_case
from onnx import TensorProto, helper, numpy_helper
from projection_graphs import (
    COLUMNS,
    INNER,
    Layer,
    another_use,
    fused,
    gated_layer,
    graph,
    kinds,
    model,
    one_by_one,
    product,
    run,
    values,
)

from phirt.bundle.files import load_manifest
from phirt.runtime.editable_graph import Model
from phirt.runtime.ort import ort


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


def _as_output(given: onnx.ModelProto, name: str) -> None:
    given.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _inside(given: onnx.ModelProto, name: str) -> None:
    branches = {
        f"{kind}_branch": graph([helper.make_node("Neg", [name], [kind])], kind) for kind in ("then", "else")
    }
    given.graph.node.append(helper.make_node("If", ["first"], ["other"], **branches))
    given.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))


@pytest.mark.parametrize("use", [another_use, _as_output, _inside])
@pytest.mark.parametrize("name", ["gate", "up", "activated", "gated"])
def test_halves_that_are_used_elsewhere_stay(library, use, name):
    case = make_case(np.random.default_rng(1), 20, 64, 4, 32, 2, gated=True)
    given = gated_layer(case)
    use(given, name)
    assert kinds(fused(given))[:4] == ["Split", "QuickGelu", "Mul", "MatMulNBits"]
    assert_right(case, run(fused(given), library, case.values))


@pytest.mark.parametrize("use", [another_use, _as_output, _inside])
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
