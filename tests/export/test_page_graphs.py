"""Graphs for pages: weights of branches become the main graph's, files are no larger than they may be, and
the numbers are the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from phirt.bundle.manifest import GraphSpec
from phirt.errors import ConfigError
from phirt_export.mobile.page_graphs import write_page_graphs

_RNG = np.random.default_rng(1)
_WIDTH = 64


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(_RNG.standard_normal(shape).astype(np.float32), name)


def _branch(name: str, *weights: onnx.TensorProto, gives: str | None = None) -> onnx.GraphProto:
    """A branch that multiplies by its weights one after the other, or that gives one of them."""
    value, nodes = "y", []
    for index, weight in enumerate(weights):
        nodes.append(helper.make_node("MatMul", [value, weight.name], [f"{name}.{index}"]))
        value = f"{name}.{index}"
    output = gives or value
    return helper.make_graph(
        nodes,
        name,
        [],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, _WIDTH])],
        [*weights, *([_weight(gives, 2, _WIDTH)] if gives else [])],
    )


def _save(folder: Path) -> GraphSpec:
    """Ifs: both branches have weights, of one name; a branch gives a weight; one lies in another;
    a weight is there for nothing.
    """
    inner = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["flag"],
                ["inner.out"],
                then_branch=_branch("t3", _weight("same", _WIDTH, _WIDTH)),
                else_branch=_branch("e3", _weight("deep", _WIDTH, _WIDTH)),
            )
        ],
        "inner",
        [],
        [helper.make_tensor_value_info("inner.out", TensorProto.FLOAT, [2, _WIDTH])],
    )
    choices = [
        (_branch("t1", _weight("same", _WIDTH, _WIDTH)), _branch("e1", _weight("same", _WIDTH, _WIDTH))),
        (_branch("t2", gives="given"), _branch("e2", _weight("w2", _WIDTH, _WIDTH))),
        (inner, _branch("e4", _weight("w4", _WIDTH, _WIDTH), _weight("w5", _WIDTH, _WIDTH))),
    ]
    choices[0][1].initializer.append(_weight("idle", _WIDTH, _WIDTH))
    nodes = [helper.make_node("MatMul", ["x", "same.0"], ["y"])]
    for number, (then, otherwise) in enumerate(choices):
        nodes.append(
            helper.make_node("If", ["flag"], [f"z{number}"], then_branch=then, else_branch=otherwise)
        )
    nodes.append(helper.make_node("Sum", ["z0", "z1", "z2"], ["z"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, _WIDTH]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, _WIDTH])],
        [_weight("same.0", _WIDTH, _WIDTH)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    return GraphSpec("g.onnx", ("g.data",), "cpu", (), ())


def _answers(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(2).standard_normal((2, _WIDTH)).astype(np.float32)
    return [session.run(None, {"x": x, "flag": np.array(flag)})[0] for flag in (False, True)]


@pytest.mark.parametrize("most", [1 << 20, 40_000])
def test_the_same_numbers_without_weights_in_branches(tmp_path: Path, most: int) -> None:
    spec = _save(tmp_path)
    folder = tmp_path / "page"
    folder.mkdir()
    written = write_page_graphs({"decoder": spec}, tmp_path, folder, most)
    for wanted, found in zip(_answers(tmp_path / "g.onnx"), _answers(folder / "g.onnx"), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)
    sizes = {name: (folder / name).stat().st_size for name in written.files}
    assert {path.name for path in folder.iterdir()} == {"g.onnx", *sizes}
    assert written.graphs["decoder"].data == tuple(sizes)
    assert all(size <= most and written.files[name].size == size for name, size in sizes.items())
    assert len(sizes) == (1 if most == 1 << 20 else 4)  # eight weights of 16 kB, two a file
    model = onnx.load(folder / "g.onnx", load_external_data=False)
    assert sum(bool(tensor.external_data) for tensor in model.graph.initializer) == 8


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    spec = _save(tmp_path)
    (tmp_path / "page").mkdir()
    with pytest.raises(ConfigError, match=r"the weight '.*' has 16384 bytes, and a page opens at most 16000"):
        write_page_graphs({"decoder": spec}, tmp_path, tmp_path / "page", 16000)
