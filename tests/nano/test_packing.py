"""onnxruntime packs no weight of the main graph for a node two Ifs deep: it then runs far slower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from phirt.model import embedded_bundle


def _products(graph: onnx.GraphProto, depth: int = 0) -> Iterator[tuple[int, str, set[str], list[str]]]:
    """Depth, name, own initializers and weights of every quantized product in a graph and its subgraphs."""
    own = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            yield depth, node.name, own, list(node.input[1:3])
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _products(attribute.g, depth + 1)


@pytest.mark.parametrize("which", ["nano", "the embedded one"])
def test_nodes_two_branches_deep_own_their_weights(nano: Path, which: str) -> None:
    path = (nano if which == "nano" else embedded_bundle()) / "decoder.onnx"
    products = list(_products(onnx.load(path, load_external_data=False).graph))
    assert {depth for depth, *_ in products} == {0, 1, 2}
    strangers = [name for depth, name, own, weights in products if depth > 1 and not own.issuperset(weights)]
    assert strangers == []
