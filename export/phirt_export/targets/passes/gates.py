"""Pass: branches of adapters that are always computed, and multiplied by a gate: an input of the graph for
each adapter, 1 where it is active and 0 elsewhere.

So one graph without an If serves every adapter, on machines that cannot choose between branches, and another
adapter is another number. The gate stands between the two matrices, where the branch is narrowest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from phirt_export.variants.rewriter import Rewriter, Rules, Values, name_of

_DOWN = re.compile(r"\.([^.]+)\.A(_\d+)?$")  # `layers.0.qkv_proj.vision.A`


def rules(gates: Mapping[str, ir.Value]) -> Rules:
    """The rules for adapters by name; `gates` are inputs [1] of the new graph."""

    def chosen(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
        """One of two branches: the one with adapters in it, or what both add."""
        condition = node.inputs[0]
        assert condition is not None
        adapter = _asks_for(condition)
        if adapter is None:
            return None
        if adapter == 0:  # none is active: then the other branch computes the same, with gates of 0
            return r.branch(node, "else_branch")
        first, second = r.branch(node, "then_branch"), r.branch(node, "else_branch")
        return [
            r.g.Add(one, other, name=f"{node.name}.either") for one, other in zip(first, second, strict=True)
        ]

    def gated(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
        """The narrow product of a branch, times its adapter's gate."""
        found = _DOWN.search(node.name or "")
        if found is None or found.group(1) not in gates:
            return None
        x, matrix = inputs
        narrow = r.g.MatMul(x, matrix, name=name_of(node))
        return [r.g.Mul(narrow, gates[found.group(1)], name=f"{node.name}.gated")]

    return {"If": chosen, "MatMul": gated}


def _asks_for(condition: ir.Value) -> int | None:
    """The id of the adapter that an If waits for; 0 where it waits for none to be active."""
    node = condition.producer()
    if node is not None and node.op_type == "Not":
        return 0
    if node is None or node.op_type != "Equal" or node.inputs[1] is None:
        return None
    wanted = node.inputs[1].const_value
    route = node.inputs[0]
    if wanted is None or route is None or route.name != "route":
        return None
    return int(wanted.numpy().reshape(-1)[0])
