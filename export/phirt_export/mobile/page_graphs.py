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

import onnx_ir as ir

from phirt.bundle.manifest import FileEntry, GraphSpec
from phirt.errors import ConfigError
from phirt_export.graphs.data_file import DataFile
from phirt_export.targets.passes import key_masks
from phirt_export.variants.rewriter import rewritten
from phirt_export.variants.storing import stored

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
        # Made anew, a graph has all weights in its main graph.
        model = rewritten(ir.load(source / spec.file), key_masks.RULES)
        with _Parts(folder, Path(spec.file).stem, max_file_bytes) as parts:
            for value in model.graph.initializers.values():
                value.const_value = parts.stored(value)
        ir.save(model, folder / spec.file)
        _require_size(spec.file, (folder / spec.file).stat().st_size, max_file_bytes)
        files.update(parts.entries)
        written[part] = dataclasses.replace(spec, data=tuple(parts.entries))
    return PageGraphs(written, files)


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
        assert value.const_value is not None
        _require_size(f"the weight {value.name!r}", value.const_value.nbytes, self._most)
        return stored(value, self._room)

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
