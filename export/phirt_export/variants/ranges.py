"""The least and the greatest value that each tensor of a float32 graph takes on real data.

Knows graphs and onnxruntime. Knows nothing of where the data come from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from phirt.runtime.device import CPU
from phirt.runtime.ort import ort
from phirt_export.graphs.data_file import DataFile
from phirt_export.targets.passes.quantize import Observed
from phirt_export.variants.storing import store_graph

Array = npt.NDArray[Any]
Range = tuple[float, float]


class Observer:
    """Runs a graph on the CPU and notes the range of everything it computes."""

    def __init__(self, model: ir.Model) -> None:
        self.ranges: dict[str, Range] = {}
        self._squares: dict[str, tuple[Array, int]] = {}
        self._multiplied = {
            node.inputs[0].name
            for node in model.graph
            if node.op_type == "MatMul" and node.inputs[0] is not None
        }
        self._outputs = [value.name or "" for value in model.graph.outputs]
        self._session = _with_all_outputs(model)
        self._names = [node.name for node in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's own outputs by name."""
        found: dict[str, Array] = dict(zip(self._names, self._session.run(None, dict(feeds)), strict=True))
        for arrays in (feeds, found):
            for name, array in arrays.items():
                self._note(name, array)
        return {name: found[name] for name in self._outputs}

    def observed(self) -> Observed:
        """What was noted."""
        return Observed(dict(self.ranges), self.importance())

    def importance(self) -> dict[str, Array]:
        """How much the weights of each input matter, by the tensor that matrices multiply: the root mean
        square of each of its elements, float32 [K].

        By the mean square itself the expected error of the outputs is the least; but that rests on the data
        that were looked at, and costs nano half a percent of its answers' tokens on others.
        """
        return {
            name: np.sqrt(total / count).astype(np.float32) for name, (total, count) in self._squares.items()
        }

    def widen(self, name: str, low: float, high: float) -> None:
        """Notes that a tensor takes these values, too."""
        known = self.ranges.get(name, (0.0, 0.0))
        self.ranges[name] = min(known[0], low), max(known[1], high)

    def _note(self, name: str, array: Array) -> None:
        if array.dtype == np.float32 and array.size:
            self.widen(name, float(array.min()), float(array.max()))
            if name in self._multiplied:
                rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
                total, count = self._squares.get(name, (np.zeros(rows.shape[1]), 0))
                self._squares[name] = total + (rows * rows).sum(axis=0), count + len(rows)


def open_plain(model: ir.Model) -> Any:
    """A session of a graph on the CPU, as it stands: a fused node would give no values of those that it has
    taken the place of.
    """
    options = CPU.session_options(spinning=False)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory(prefix="phirt-ranges-") as folder:
        path = Path(folder) / "graph.onnx"
        with DataFile(path.with_suffix(".data")) as data:
            store_graph(model.clone(), path, data)
        return CPU.open(str(path), options)


def _with_all_outputs(model: ir.Model) -> Any:
    """A session of the graph that gives what every node computes."""
    copy = model.clone()
    outputs = {value.name for value in copy.graph.outputs}
    for node in copy.graph:
        for value in node.outputs:
            if value.name and value.name not in outputs:
                value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
                copy.graph.outputs.append(value)
    return open_plain(copy)
