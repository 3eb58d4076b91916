"""A few bytes of a stranger's graph that ask for any amount of memory while it is opened are refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from onnx import numpy_helper
from onnx_graphs import GIGA, branch, external, floats, ints, model, node, refused

WIDE = 1 << 15


def doubling(count: int) -> list:
    """Each node puts the result of the one before there twice."""
    names = ["row", *(f"v{number}" for number in range(1, count)), "y"]
    return [node("Concat", [before, before], [after], axis=0) for before, after in pairwise(names)]


def scale(*values: float):
    """Factors of a Resize, or sizes that are no whole numbers."""
    return numpy_helper.from_array(np.array(values, np.float32), "f")


@pytest.mark.parametrize(
    ("nodes", "weights", "match"),
    [
        ([node("ConstantOfShape", ["s"], ["y"])], [ints("s", GIGA, 4)], "a ConstantOfShape makes 4000000000"),
        (
            [
                node("Neg", ["a"], ["n"]),
                node("Concat", ["n", "b"], ["s"], axis=0),
                node("ConstantOfShape", ["s"], ["y"]),
            ],
            [ints("a", -10 * GIGA), ints("b", 1)],
            "a ConstantOfShape has a size that only running it would tell",
        ),
        (
            [node("Max", ["a", "a", "b"], ["s"]), node("ConstantOfShape", ["s"], ["y"])],
            [ints("a", 0), ints("b", 10 * GIGA)],
            "ConstantOfShape has a size that only",
        ),
        (
            [
                node("Cast", ["a"], ["u"], to=12),
                node("Cast", ["u"], ["s"], to=7),
                node("ConstantOfShape", ["s"], ["y"]),
            ],
            [ints("a", -1)],
            "ConstantOfShape has a size that only",
        ),
        ([node("ConstantOfShape", ["f"], ["y"])], [scale(float("inf"))], "cannot be computed"),
        ([node("Expand", ["row", "s"], ["y"])], [ints("s", GIGA, 4)], "Expand makes"),
        ([node("Expand", ["x", "s"], ["y"])], [ints("s", GIGA, 1)], "Expand makes"),
        ([node("Tile", ["x", "s"], ["y"])], [ints("s", GIGA, GIGA)], "a Tile makes"),
        ([node("Tile", ["row", "s"], ["y"])], [ints("s", 1 << 13, 1 << 13)], "a Tile makes"),
        ([node("Pad", ["x", "s"], ["y"])], [ints("s", 0, 0, GIGA, 0)], "a Pad makes"),
        ([node("Pad", ["row", "s"], ["y"])], [ints("s", 0, 1 << 14, 1 << 14, 0)], "a Pad makes"),
        ([node("OneHot", ["s", "s", "v"], ["y"])], [ints("s", GIGA), ints("v", 0, 1)], "a OneHot makes"),
        ([node("Range", ["a", "s", "b"], ["y"])], [ints("a", 0), ints("s", GIGA), ints("b", 1)], "a Range"),
        (
            [node("Resize", ["x", "", "f"], ["y"])],
            [scale(1e5, 1e5)],
            "a Resize makes",
        ),
        (
            [node("Mul", ["s", "s"], ["t"]), node("ConstantOfShape", ["t"], ["y"])],
            [ints("s", 1 << 20)],
            "a ConstantOfShape has a size that only",
        ),
        (
            [node("Concat", ["s", "s"], ["t"], axis=0), node("ConstantOfShape", ["t"], ["y"])],
            [ints("s", 1 << 20)],
            "a ConstantOfShape makes",
        ),
        (
            [node("Cast", ["f"], ["t"], to=7), node("ConstantOfShape", ["t"], ["y"])],
            [scale(1e12)],
            "a ConstantOfShape has a size that only",
        ),
        (
            [
                node("Exp", ["f"], ["e"]), node("Cast", ["e"], ["t"], to=7),
                node("ConstantOfShape", ["t"], ["y"]),
            ],
            [scale(30)],
            "size that only running it would tell",
        ),
        (
            [
                node("Shape", ["x"], ["d"]), node("Gather", ["d", "i"], ["r"]),
                node("Concat", ["r", "s"], ["t"], axis=0), node("Expand", ["row", "t"], ["y"]),
            ],
            [ints("i", 0), ints("s", GIGA)],
            "Expand makes",
        ),
        (doubling(60), [], "computed ahead"),
        ([node("Add", ["a", "b"], ["y"])], [floats("a", WIDE, 1), floats("b", 1, WIDE)], "computed ahead"),
        ([node("MatMul", ["a", "b"], ["y"])], [floats("a", WIDE, 1), floats("b", 1, WIDE)], "computed"),
        ([node("Gather", ["a", "i"], ["y"])], [floats("a", 1, WIDE), ints("i", *[0] * WIDE)], "computed"),
        ([node("Conv", ["x", "w"], ["y"], pads=[0, GIGA])], [floats("w", 1, 4, 3)], "Conv has pads beyond"),
        ([node("Conv", ["x", "w"], ["y"], kernel_shape=[GIGA])], [floats("w", 1, 4, 3)], "kernel_shape"),
        (
            [
                node(
                    "If", ["t"], ["y"], then_branch=branch([node("Relu", ["x"], ["inner"])]),
                    else_branch=branch([node("Relu", ["x"], ["inner"])]),
                )
            ],
            [numpy_helper.from_array(np.array([True]), "t")],
            "condition that never changes",
        ),
    ],
)  # fmt: skip
def test_few_bytes_that_ask_for_much_memory_are_refused(check, nodes, weights, match):
    refused(check, model(nodes, [*weights, floats("row", 1, 4)]), match)


def test_one_hundred_foldings_that_pass_alone_are_refused_together(check):
    nodes = [node("ConstantOfShape", ["s"], [f"c{i}"]) for i in range(100)]
    made = model([*nodes, node("Add", ["x", "c0"], ["y"])], [ints("s", 1 << 22, 1)])
    refused(check, made, "computed ahead")
    del made.graph.node[1:99]
    check(made)


def test_weights_may_be_turned_and_unpacked_ahead(check):
    big = external([1 << 12, 1 << 12], location="data", offset=0, length=1 << 26)
    made = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("Mul", ["t", "scale"], ["s"]),
        node("MatMul", ["x", "s"], ["y"]),
    ]
    check(model(made, [big, floats("scale", 1)]), data=1 << 26)
