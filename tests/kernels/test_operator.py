"""The operator inside graphs that onnxruntime runs, beside onnxruntime's own: weights in every place that a
graph has for them, and the same bits with any number of threads.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from kernel_cases import EPSILON, Case, assert_right, expected, magnitudes, make_case
from onnx import TensorProto, helper, numpy_helper

from phirt.runtime.kernels import with_kernels
from phirt.runtime.ort import ort

INPUTS = ("A", "B", "scales", "zero_points", "g_idx", "bias")


def weights(case: Case) -> dict[str, np.ndarray]:
    """The node's inputs apart from the activations."""
    given = {"B": case.codes, "scales": case.scales, "zero_points": case.zero_points, "bias": case.bias}
    return {name: array for name, array in given.items() if array is not None}


def node(case: Case, output: str = "Y", **renamed: str) -> onnx.NodeProto:
    there = {"A", *weights(case)}
    names = [renamed.get(name, name) if name in there else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    sizes = {"K": case.inner, "N": case.columns, "bits": case.bits, "block_size": case.block_size}
    return helper.make_node("MatMulNBits", names, [output], domain="com.microsoft", accuracy_level=4, **sizes)


def float_value(name: str, columns: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", columns])


def initializers(arrays: dict[str, np.ndarray]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def model(case: Case, nodes, constants: dict[str, np.ndarray], extra_inputs=()) -> bytes:
    inputs = [float_value("A", case.inner), *extra_inputs]
    graph = helper.make_graph(
        list(nodes), "product", inputs, [float_value("Y", case.columns)], initializers(constants)
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def run(graph: bytes, library: Path | None, feed: dict[str, np.ndarray], threads: int = 1) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    return np.asarray(found)


def ours(graph: bytes, library: Path, feed: dict[str, np.ndarray], threads: int = 1) -> np.ndarray:
    changed = with_kernels(graph)
    assert changed is not None
    return run(changed, library, feed, threads)


def assert_both_agree(
    case: Case, graph: bytes, library: Path, feed: dict[str, np.ndarray] | None = None
) -> None:
    """As defined, and within rounding of what onnxruntime computes, which adds parts of blocks."""
    given = {"A": case.values, **(feed or {})}
    found = ours(graph, library, given)
    assert_right(case, found)
    _, error = expected(case)
    difference = np.abs(found - run(graph, None, given))
    assert (difference <= 2 * error + 16 * EPSILON * magnitudes(case)).all(), difference.max()


def plain_case(seed: int = 3, **options: Any) -> Case:
    return make_case(np.random.default_rng(seed), 40, 256, 4, 64, 5, **options)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("rows", "options"), [(1, {"zero_points": True}), (9, {"bias": True, "half": True})])
def test_it_agrees_with_onnxruntime(library, block_size, rows, options):
    case = make_case(np.random.default_rng(block_size), 52, 2 * block_size, 4, block_size, rows, **options)
    assert_both_agree(case, model(case, [node(case)], weights(case)), library)


def test_any_number_of_threads_gives_the_same_bits(library):
    case = make_case(np.random.default_rng(1), 1000, 576, 4, 32, 33, zero_points=True, bias=True)
    graph = model(case, [node(case)], weights(case))
    first, *others = (ours(graph, library, {"A": case.values}, threads) for threads in (1, 2, 3))
    assert_right(case, first)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_activations_of_three_axes_and_of_no_rows(library):
    case = plain_case()
    graph = onnx.load_from_string(model(case, [node(case)], weights(case)))
    for value, last in ((graph.graph.input[0], case.inner), (graph.graph.output[0], case.columns)):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["a", "b", last]))
    data = graph.SerializeToString()
    found = ours(data, library, {"A": np.stack([case.values, -case.values])})
    assert found.shape == (2, 5, case.columns)
    assert_right(case, found[0])
    assert ours(data, library, {"A": np.zeros((0, 5, case.inner), np.float32)}).shape == (0, 5, case.columns)


@pytest.mark.parametrize("chosen", [True, False])
def test_inside_a_branch(library, chosen):
    """One branch has weights of its own, the other those of the graph around it."""
    outer, inner = plain_case(1, bias=True), plain_case(2, zero_points=True)
    constants = weights(outer)
    own = {f"own_{name}": array for name, array in weights(inner).items()}
    renamed = {name: f"own_{name}" for name in weights(inner)}
    branches = {
        "then_branch": helper.make_graph([node(outer, "T")], "then", [], [float_value("T", 40)]),
        "else_branch": helper.make_graph(
            [node(inner, "E", **renamed)], "else", [], [float_value("E", 40)], initializers(own)
        ),
    }
    choice = helper.make_tensor_value_info("choice", TensorProto.BOOL, [])
    graph = model(outer, [helper.make_node("If", ["choice"], ["Y"], **branches)], constants, [choice])
    used = outer if chosen else dataclasses.replace(inner, values=outer.values)
    assert_both_agree(used, graph, library, {"choice": np.array(chosen)})


def test_scales_that_are_computed_when_the_graph_is_opened(library):
    case = plain_case(half=True, zero_points=True)
    constants = {**weights(case), "halves": case.scales.astype(np.float16)}
    del constants["scales"]
    cast = helper.make_node("Cast", ["halves"], ["scales"], to=TensorProto.FLOAT)
    assert_both_agree(case, model(case, [cast, node(case)], constants), library)


@pytest.mark.parametrize("given", ["B", "scales"])
def test_weights_that_the_caller_gives_are_refused(library, given):
    """They are no constants, so nothing could be packed ahead: onnxruntime's own operator takes the graph."""
    case = plain_case(1)
    constants = weights(case)
    array = constants.pop(given)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = model(case, [node(case)], constants, [helper.make_tensor_value_info(given, kind, array.shape)])
    with pytest.raises(Exception, match="weights that are no constants"):
        ours(graph, library, {"A": case.values, given: array})


def test_sizes_that_do_not_fit_are_refused(library):
    case = plain_case()
    short = {**weights(case), "scales": case.scales[:-1]}
    with pytest.raises(Exception, match="scales has not the size"):
        ours(model(case, [node(case)], short), library, {"A": case.values})


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"N": 2**32, "K": 2**36, "block_size": 16}, "not supported"),  # whose products are 0 in 64 bits
        ({"N": -1}, "not supported"),
        ({"K": 2**62}, "not supported"),
        ({"block_size": 48}, "not supported"),
        ({"bits": 3}, "not supported"),
        ({"N": 41}, "has not the size"),
    ],
)
def test_sizes_of_a_stranger_are_refused(library, sizes, message):
    case = plain_case()
    changed = node(case)
    for attribute in changed.attribute:
        attribute.i = sizes.get(attribute.name, attribute.i)
    with pytest.raises(Exception, match=message):
        ours(model(case, [changed], weights(case)), library, {"A": case.values})


def test_a_bias_of_another_size_is_refused(library):
    case = plain_case(bias=True)
    short = {**weights(case), "bias": np.ones(1, np.float32)}
    with pytest.raises(Exception, match="bias has not N elements"):
        ours(model(case, [node(case)], short), library, {"A": case.values})


def test_groups_in_an_order_of_their_own_are_left_to_onnxruntime():
    case = plain_case(bias=False)
    ordered = node(case)
    ordered.input.extend(["", "g_idx"])
    groups = {"g_idx": np.zeros(case.inner, np.int32)}
    assert with_kernels(model(case, [ordered], {**weights(case), **groups})) is None
    later = node(case)
    later.attribute.append(helper.make_attribute("an_attribute_of_later", 1))
    assert with_kernels(model(case, [later], weights(case))) is None
