"""Graphs that are read and written again mean the same; names are found wherever they are used."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from phirt.bundle.files import load_manifest
from phirt.model import embedded_bundle
from phirt.runtime.editable_graph import Model


def again(data: bytes) -> bytes:
    return Model.read(data).written()


def test_graphs_of_bundles_mean_the_same(nano):
    for bundle in (nano, embedded_bundle()):
        for spec in load_manifest(bundle).graphs.values():
            data = (bundle / spec.file).read_bytes()
            assert onnx.load_from_string(again(data)) == onnx.load_from_string(data)


def example() -> onnx.ModelProto:
    """A loop inside a branch; attributes of every kind."""
    x = helper.make_tensor_value_info("x", TensorProto.INT8, [1, "rows", 64])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, -2.0])
    body = helper.make_graph([helper.make_node("Neg", ["w"], ["n"])], "body", [], [], [weight])
    loop = helper.make_node("Loop", ["", "", "x"], ["", "l"], body=body)
    branch = helper.make_graph([loop], "branch", [], [])
    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch, else_branch=helper.make_graph([], "none", [], [])
    )
    plain = helper.make_node(
        "Plain", ["y", "", "x"], ["z"], "a name", "a text", "a.domain",
        an_int=-3, a_float=0.5, text="text", ints=[1, -2], floats=[1.5], strings=["a", "b"], tensor=weight,
    )  # fmt: skip
    graph = helper.make_graph(
        [choice, plain], "g", [x], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    model = helper.make_model(graph, producer_name="someone")
    helper.set_model_props(model, {"key": "value"})
    return model


def test_everything_of_a_graph_is_kept_and_seen():
    given_model = example()
    data = given_model.SerializeToString()
    assert onnx.load_from_string(again(data)) == given_model
    (graph,) = Model.read(data).graphs
    choice, plain = graph.nodes
    assert (plain.kind, plain.domain, plain.name) == (b"Plain", b"a.domain", b"a name")
    assert plain.attributes == {b"an_int": -3, b"a_float": 0.5, b"text": b"text"}
    assert (plain.inputs, plain.outputs) == ([b"y", b"", b"x"], [b"z"])
    assert (plain.input(1), plain.input(7)) == (b"", b"")
    assert graph.inputs == {b"x": (TensorProto.INT8, 64)}
    assert set(choice.branches) == {b"then_branch", b"else_branch"}
    assert sorted(graph.defined()) == [b"l", b"n", b"w", b"x", b"y", b"z"]
    assert sorted(graph.used()) == [b"c", b"w", b"x", b"x", b"y", b"z"]


def test_attributes_and_domains_are_added():
    model = Model.read(example().SerializeToString())
    model.add_domain(b"new.domain")
    node = model.graphs[0].nodes[1]
    node.set_attribute(b"whole", 7)
    node.set_attribute(b"part", 0.25)
    right = example()
    right.opset_import.append(helper.make_opsetid("new.domain", 1))
    right.graph.node[1].attribute.extend(
        [helper.make_attribute("whole", 7), helper.make_attribute("part", 0.25)]
    )
    assert onnx.load_from_string(model.written()) == right


def test_two_weights_of_one_name_are_refused():
    model = example()
    model.graph.initializer.extend(
        [helper.make_tensor("twice", TensorProto.FLOAT, [1], [i]) for i in (1.0, 2.0)]
    )
    with pytest.raises(ValueError, match="two weights of one name"):
        Model.read(model.SerializeToString())


@given(st.binary(max_size=80))
def test_what_is_no_model_is_refused_or_written_again(data):
    try:
        model = Model.read(data)
    except ValueError:
        return
    assert Model.read(model.written()).written() == model.written()


@given(st.data())
def test_damaged_models_are_refused_or_written_again(data):
    whole = bytearray(example().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = Model.read(bytes(whole))
    except ValueError:
        return
    assert Model.read(model.written()).written() == model.written()
