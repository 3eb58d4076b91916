"""Writes a graph whose weights are computed as they are written: into one data file for all graphs of a part.

Knows data files and tensors. Knows nothing of what a graph computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.data_file import DataFile

# Smaller weights stay in the graph itself.
_INLINE_BYTES = 1024


def store_graph(model: ir.Model, path: Path, data: DataFile, *, copies: bool = False) -> tuple[str, ...]:
    """Writes a graph to `path`, with the weights that it has of its own in `data`, once for all graphs that
    bring the same. Weights that already lie in a file beside `path` stay there, unless `copies` is set.

    Returns:
        The names of the files in which its weights lie.
    """
    used: set[str] = set()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            value.const_value = _stored(value, path.parent, data, copies)
            if isinstance(value.const_value, ir.ExternalTensor):
                used.add(str(value.const_value.location))
    ir.save(model, path)
    return tuple(sorted(used))


def _stored(value: ir.Value, folder: Path, data: DataFile, copies: bool) -> ir.TensorProtocol:
    tensor, name = value.const_value, value.name or "weight"
    assert tensor is not None
    if not copies and isinstance(tensor, ir.ExternalTensor) and _lies_in(tensor, folder):
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name
        )
    return stored(value, lambda _: data)


def stored(value: ir.Value, data_for: Callable[[int], DataFile]) -> ir.TensorProtocol:
    """A weight as it lies in the data file for so many bytes, or in the graph where it is small."""
    tensor, name = value.const_value, value.name or "weight"
    assert tensor is not None
    if tensor.nbytes <= _INLINE_BYTES:
        return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    extent = data_for(tensor.nbytes).append_array("", np.frombuffer(tensor.tobytes(), np.uint8))
    return extent.tensor(name, tensor.dtype, tuple(tensor.shape.numpy()))


def _lies_in(tensor: ir.ExternalTensor, folder: Path) -> bool:
    return Path(tensor.path).resolve().parent == folder.resolve()
