"""Graphs as a page can open them, whose onnxruntime has no files.

It is handed the weights as whole arrays, one for each data file, and finds those of the main graph alone in
them: weights that belong to a branch become the main graph's, where both branches still see them. No file may
be larger than an array of a browser can be, so that weights lie in as many files as that takes. Masks of keys
are added to scores, as WebGPU's attention wants them; other processors take them like this as well.

Knows graphs and files. Knows nothing of what a graph computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from phirt.bundle.manifest import FileEntry, GraphSpec
from phirt.errors import ConfigError
from phirt_export.graphs.data_file import DataFile
from phirt_export.targets.passes import key_masks
from phirt_export.variants.rewriter import rewritten

# Smaller weights stay in the graph itself.
_INLINE_BYTES = 1024
_ALIGNMENT = 4096  # what is lost at most between two weights


@dataclasses.dataclass(frozen=True)
class PageGraphs:
    """Graphs by part, as the manifest names them, and the data files that were written for them."""

    graphs: Mapping[str, GraphSpec]
    files: Mapping[str, FileEntry]


def write_page_graphs(
    graphs: Mapping[str, GraphSpec], source: Path, folder: Path, max_file_bytes: int
) -> PageGraphs:
    """Writes graphs of the bundle in `source` into `folder`, each with data files of its own.

    Raises:
        ConfigError: a single weight, or a graph itself, is larger than a file may be.
    """
    written, files = {}, {}
    for part, spec in graphs.items():
        model = rewritten(ir.load(source / spec.file), key_masks.RULES)
        hoist_weights(model)
        with _Parts(folder, Path(spec.file).stem, max_file_bytes) as parts:
            for value in model.graph.initializers.values():
                value.const_value = parts.stored(value)
        ir.save(model, folder / spec.file)
        _require_size(spec.file, (folder / spec.file).stat().st_size, max_file_bytes)
        files.update(parts.entries)
        written[part] = dataclasses.replace(spec, data=tuple(parts.entries))
    return PageGraphs(written, files)


def hoist_weights(model: ir.Model) -> None:
    """Makes the weights of all branches the main graph's, each under a name that nothing else has."""
    taken = {value.name for graph in (model.graph, *model.graph.subgraphs()) for value in _values(graph)}
    for graph in list(model.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            if value in graph.outputs:  # of a branch it is what a node gives
                node = ir.node("Identity", [value])
                graph.append(node)
                for at, output in enumerate(graph.outputs):
                    if output is value:
                        graph.outputs[at] = node.outputs[0]
                node.outputs[0].name = _free(f"{name}.given", taken)
            del graph.initializers[name]
            if not value.uses():  # nothing takes it
                continue
            if name in model.graph.initializers or _is_shadowed(name, graph, model):
                value.name = _free(name, taken)
            model.graph.register_initializer(value)


def _is_shadowed(name: str, of: ir.Graph, model: ir.Model) -> bool:
    """Whether another graph has a value of this name."""
    graphs = (model.graph, *model.graph.subgraphs())
    return any(value.name == name for graph in graphs if graph is not of for value in _values(graph))


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    return values + [value for node in graph for value in node.outputs]


def _free(name: str, taken: set[str | None]) -> str:
    """A name like this one that nothing has yet."""
    found = next(one for number in range(1 << 20) if (one := f"{name}.{number}") not in taken)
    taken.add(found)
    return found


class _Parts:
    """The data files of one graph, one after the other, none larger than `most`."""

    def __init__(self, folder: Path, stem: str, most: int) -> None:
        self._folder, self._stem, self._most = folder, stem, most
        self._stack = contextlib.ExitStack()
        self._file: DataFile | None = None
        self.entries: dict[str, FileEntry] = {}

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def stored(self, value: ir.Value) -> ir.TensorProtocol:
        """A weight's value as it lies in a file, or in the graph where it is small."""
        tensor, name = value.const_value, value.name or "weight"
        assert tensor is not None
        if tensor.nbytes <= _INLINE_BYTES:
            return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
        _require_size(f"the weight {name!r}", tensor.nbytes, self._most)
        extent = self._room(tensor.nbytes).append_array("", np.frombuffer(tensor.tobytes(), np.uint8))
        return extent.tensor(name, tensor.dtype, tuple(tensor.shape.numpy()))

    def _room(self, count: int) -> DataFile:
        if self._file is not None and self._file.size + _ALIGNMENT + count > self._most:
            self._close()
        if self._file is None:
            number = len(self.entries)
            name = f"{self._stem}.data" if not number else f"{self._stem}.{number}.data"
            self._file = self._stack.enter_context(DataFile(self._folder / name))
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._stack.close()
            self.entries[self._file.path.name] = FileEntry(self._file.size, self._file.sha256)
            self._file = None


def _require_size(what: str, size: int, most: int) -> None:
    if size > most:
        raise ConfigError(
            f"{what} has {size} bytes, and a page opens at most {most}; export fewer bits (--bits 4) "
            "or for an app (--target android)"
        )
