"""Makes a graph again, node by node, where rules say how operators are to be put otherwise.

A rule is a function for the nodes of one kind: it is given a node of the old graph with its inputs in the new
one, and returns the node's outputs there, or None where it does not concern the node. Nodes without a rule
are copied. Inputs of the old graph that the new one does not have are ABSENT; what depends on one is ABSENT,
too, unless a rule knows better, and is left out.

Knows graphs and branches. Knows no operator and no target.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from phirt_export.variants.constants import constant_of
from phirt_export.variants.emitter import Emitter

ABSENT = ir.Value(name="absent")

Values = Sequence["ir.Value | None"]
Rule = Callable[["Rewriter", ir.Node, Values], Values | None]
Rules = Mapping[str, Rule]


class Rewriter:
    """One old graph on its way into an emitter; `rules` are tried in order, by the kind of the node."""

    def __init__(self, g: Emitter, rules: Sequence[Rules]) -> None:
        self.g, self._rules = g, rules
        self._made: dict[ir.Value, ir.Value] = {}
        self.shared: dict[object, ir.TensorProtocol] = {}  # for rules that make the same weight twice

    def put(self, old: ir.Value, new: ir.Value) -> None:
        """Says what stands for a value of the old graph."""
        self._made[old] = new

    def get(self, old: ir.Value) -> ir.Value:
        """What stands for a value of the old graph: a weight is taken over when it is first asked for."""
        if old not in self._made:
            assert old.const_value is not None, f"{old.name} is no input that is known, and no weight"
            self._made[old] = self.g.keep(old.const_value, old.name or "weight")
        return self._made[old]

    def constant(self, old: ir.Value | None) -> np.ndarray | None:
        """The value of what the old graph computes of weights alone; None for anything else."""
        return None if old is None else constant_of(old)

    def graph(self, graph: ir.Graph) -> list[ir.Value]:
        """Emits the nodes of a graph, the main one or a branch, and returns what stands for its outputs."""
        self.nodes(graph)
        return [self.get(value) for value in graph.outputs]

    def nodes(self, graph: ir.Graph, stop_at: ir.Value | None = None) -> None:
        """Emits the nodes of a graph, all of them or those up to the one that gives a value."""
        for node in graph:
            if all(value in self._made for value in node.outputs):
                continue  # what stands for them was given
            for old, new in zip(node.outputs, self._outputs(node), strict=False):
                if new is not None and old not in self._made:
                    self._made[old] = new
            if stop_at in node.outputs:
                return

    def once(self, key: object, build: Callable[[], ir.Value]) -> ir.Value:
        """What a rule builds for all nodes that ask for the same, in the main graph."""
        return self.g.once(key, build)

    def input(self, name: str) -> ir.Value:
        """An input of the new graph."""
        return next(value for value in self.g.inputs if value.name == name)

    def branch(self, node: ir.Node, name: str) -> list[ir.Value]:
        """Emits a branch of an If in the place where the If would be."""
        return self.graph(node.attributes[name].as_graph())

    def _outputs(self, node: ir.Node) -> Values:
        inputs = [None if value is None else self.get(value) for value in node.inputs]
        for rules in self._rules:
            if (rule := rules.get(node.op_type)) is not None:
                made = rule(self, node, inputs)
                if made is not None:
                    return made
        if any(value is ABSENT for value in inputs):
            return [ABSENT] * len(node.outputs)
        if node.op_type != "If":
            return self.g.copy(node, inputs)
        (condition,) = inputs
        assert condition is not None
        return self.g.if_else(
            condition,
            lambda: self._of_their_own(self.branch(node, "then_branch")),
            lambda: self._of_their_own(self.branch(node, "else_branch")),
            node.name or "if",
        )

    def _of_their_own(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        """A branch's outputs as values that its own nodes give: a weight of the main graph is none."""
        return [self.g.Identity(value) if value.producer() is None else value for value in values]


def copied(model: ir.Model, g: Emitter, rules: Sequence[Rules]) -> ir.Model:
    """A graph made again in `g` by rules, with the same inputs and outputs."""
    rewriter = Rewriter(g, rules)
    for value in model.graph.inputs:
        rewriter.put(value, g.input(value.name or "", *_type(value)))
    for value, made in zip(model.graph.outputs, rewriter.graph(model.graph), strict=True):
        g.output(made, value.name or "", *_type(value))
    return g.finished("phirt")


def rewritten(model: ir.Model, rules: Rules) -> ir.Model:
    """The same for one pass, in the graph's own version of the standard."""
    return copied(model, Emitter(model.graph.name or "graph", model.graph.opset_imports[""]), [rules])


def _type(value: ir.Value) -> tuple[str, list[int | str]]:
    assert value.dtype is not None and value.shape is not None
    dims = [size if isinstance(size, int) else str(size.value) for size in value.shape]
    return value.dtype.numpy().name, dims


def name_of(node: ir.Node) -> str:
    """The name of a node, or its kind."""
    return node.name or node.op_type.lower()


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of this kind that gives a value; None where another does, or none."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def is_called(node: ir.Node, ending: str) -> bool:
    """Whether a node's name ends so, whichever of several it is."""
    return re.search(rf"{re.escape(ending)}(_\d+)?$", name_of(node)) is not None


def attribute(node: ir.Node, name: str, default: int | float | str) -> int | float | str:
    """A number or a text that a node has as an attribute, or its default."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value: int | float | str = found.value
    return value


def integer(node: ir.Node, name: str, default: int) -> int:
    """The same for whole numbers."""
    return int(attribute(node, name, default))
