"""Products of inputs that are rounded twice, as one node: where that is done, that it computes what the nodes
compute that it stands for, and what is left alone.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from kernel_cases import assert_right, make_case
from onnx import TensorProto, helper, numpy_helper
from projection_graphs import (
    COLUMNS,
    INNER,
    Layer,
    another_use,
    fused,
    fused_bytes,
    graph,
    kinds,
    one_by_one,
    run,
    twice_rounded_layer,
    values,
)

from phirt.bundle.files import load_manifest
from phirt.model import embedded_bundle
from phirt.runtime.editable_graph import Model
from phirt.runtime.ort import ort


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
    another_use(given, given.graph.node[place].output[0])
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


def test_layers_of_weights_in_several_formats_are_taken():
    """Those of the embedded model, whose inputs are rounded twice in places."""
    bundle = embedded_bundle()
    given = Model.read((bundle / load_manifest(bundle).graphs["decoder"].file).read_bytes())
    before, after = Counter(), Counter()
    for counted, read in ((before, given), (after, Model.read(fused_bytes(given.written())))):
        counted.update(node.kind for graph in read.graphs[0].all_graphs() for node in graph.nodes)
    assert before[b"Round"] and before[b"QuickGelu"]
    assert not any(after[kind] for kind in (b"Round", b"ReduceSum", b"QuickGelu"))
