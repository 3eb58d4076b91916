"""Checkpoints of every layout, read tensor by tensor under the reference model's names.

Knows how a layout's tensors become the reference model's (stacked rows, nothing copied ahead of its use), and
how to complain about all differences at once. The container is `containers`' matter, published names and
configurations are `layouts`'. Only safetensors and GGUF are read: pickled weights can run code when opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from phirt.bundle.tensor_file import DTYPES, open_file
from phirt.errors import ConfigError
from phirt_export.adapted import AdaptedCheckpoint, is_adapter
from phirt_export.containers import PublishedTensor, open_weights, some
from phirt_export.encoders import tower_plans
from phirt_export.families import read_document, read_layout
from phirt_export.gguf_files.checkpoint import GgufCheckpoint
from phirt_export.gguf_files.header import is_gguf
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.kept import finer_format, holds_quantized, kept_format, kept_kinds, kept_rows
from phirt_export.packed.checkpoint import original_tensors
from phirt_export.published.decoder import EMBEDDING, HEAD
from phirt_export.published.layout import Part
from phirt_export.published.rope import rope_notices
from phirt_export.reference import Model, ModelConfig
from phirt_quant.blockwise import BlockQuantized

# Bookkeeping of a training run that no graph needs.
_IGNORED_SUFFIXES = (".num_batches_tracked",)
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")
_SLAB_ELEMENTS = 1 << 22


# Of the configurations that were asked for last: an export asks for each matrix of a model, and each time the
# whole model would be put together, if without weights.
_known_shapes: dict[str, dict[str, tuple[int, ...]]] = {}
_MOST_KNOWN = 8


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor that a model of this configuration needs."""
    key = config.to_json()
    known = _known_shapes.get(key)
    if known is None:
        with torch.device("meta"):
            state = Model(config).state_dict()
        known = {name: tuple(t.shape) for name, t in state.items() if not name.endswith(_IGNORED_SUFFIXES)}
        if len(_known_shapes) >= _MOST_KNOWN:
            _known_shapes.clear()
        _known_shapes[key] = known
    return dict(known)


class Checkpoint:
    """An opened checkpoint: its configuration, its files, and its tensors as float32 on demand. `notices`
    say in a line each what of it is left out.

    Attributes:
        path: what was opened: a folder, a GGUF file, or the folder of an adapter, whose base is `base` or
            the one that it names.
        folder: where its documents are.
        state: what tells the weights from others that are not in the folder, in plain values.
        kept: formats of matrices that can keep the quantized blocks that the files hold.
        finer: formats of others that are quantized in the files, in more than 4 bits.

    Raises:
        ConfigError: files are missing, damaged or pickled, the configuration is none that can be built, or
            tensors are missing, unknown in a layer or misshapen (all of them are named in one message, before
            any work is done).
    """

    def __init__(self, path: Path, base: Path | None = None) -> None:
        self.path = path
        self._container = _container(path, base)  # its folder lives as long as it does
        folder = self.folder = path if self._container is None else self._container.folder
        self.state = [] if self._container is None else self._container.state
        document = read_document(folder)
        stored: dict[str, PublishedTensor] = {}
        if self._container is None:
            stored |= original_tensors(folder, document, open_weights(folder))
        else:
            stored |= self._container.tensors
        if _is_copied_head(stored):
            del stored[HEAD]
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        try:
            layout = read_layout(folder, document, shapes)
        except ConfigError as error:  # a document made of a file's metadata is known by the file's name
            raise ConfigError(str(error).replace(str(folder), str(path))) from error
        self.config = layout.config
        for adapter, path in layout.adapter_files.items():
            stored |= {f"{adapter}/{name}": tensor for name, tensor in open_file(path).items()}
        self.encoders = tower_plans(self.config) if layout.encoders is None else layout.encoders
        self._shapes = expected_shapes(self.config)
        for plan in self.encoders:
            self._shapes |= plan.shapes
        parts = {name: layout.parts(name) for name in self._shapes}
        ignored = {name for name in stored if name.endswith(_IGNORED_SUFFIXES) or layout.ignores(name)}
        spare = self._check(stored, parts, ignored)
        self.notices = [] if document.has("decoder") else rope_notices(document)
        if spare:
            self.notices.append(
                f"{len(spare)} tensors are left out, which no computation needs: {some(spare)}"
            )
        self._parts = {name: [stored[part.name] for part in of] for name, of in parts.items()}
        self._published = {name: [part.name for part in of] for name, of in parts.items()}
        formats = {name: kept_format(of) for name, of in self._parts.items() if len(self._shapes[name]) == 2}
        self.kept: Mapping[str, WeightFormat] = {name: f for name, f in formats.items() if f is not None}
        finer = {name: finer_format(self._parts[name]) for name in formats.keys() - self.kept.keys()}
        self.finer: Mapping[str, WeightFormat] = {n: f for n, f in sorted(finer.items()) if f is not None}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of all tensors that a bundle is made of."""
        return self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def stored_parts(self, name: str) -> list[tuple[str, int]]:
        """What a tensor is stored as: published names and the rows of each, in order."""
        parts = zip(self._published[name], self._parts[name], strict=True)
        return [(published, part.shape[0]) for published, part in parts]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis, float32; only these are read from the files."""
        read, first = [], 0
        for part, published in zip(self._parts[name], self._published[name], strict=True):
            last = first + part.shape[0]
            if first < stop and start < last:
                rows = part.rows(max(start, first) - first, min(stop, last) - first)
                read.append(_finite(rows, published))
            first = last
        return read[0] if len(read) == 1 else np.concatenate(read)

    def tensor(self, name: str) -> np.ndarray:
        """The whole tensor, float32."""
        parts = zip(self._parts[name], self._published[name], strict=True)
        read = [_finite(part.tensor(), published) for part, published in parts]
        return read[0] if len(read) == 1 else np.concatenate(read)

    def kept_rows(self, name: str, start: int, stop: int) -> BlockQuantized:
        """Rows start..stop-1 of a matrix in `kept`, as the blocks that the files hold."""
        return kept_rows(self._parts[name], self.kept[name], start, stop)

    @property
    def is_quantized(self) -> bool:
        """Whether the files hold quantized matrices."""
        return any(holds_quantized(parts) for parts in self._parts.values())

    def kinds(self, name: str) -> tuple[str, ...]:
        """The block types that a tensor is stored in; nothing where it is floats of a safetensors file."""
        return kept_kinds(self._parts[name])

    def _check(
        self,
        stored: Mapping[str, PublishedTensor],
        parts: dict[str, tuple[Part, ...]],
        ignored: set[str],
    ) -> list[str]:
        """Refuses weights that do not fit; returns the names of those that nothing needs."""
        wanted: dict[str, tuple[int, ...]] = {}
        for name, of in parts.items():
            shape = self._shapes[name]
            for part in of:
                wanted[part.name] = shape if part.rows is None else (part.rows, *shape[1:])
        found = {name: tensor for name, tensor in stored.items() if name in wanted}
        unknown = [name for name in stored if name not in wanted and name not in ignored]
        missing = [name for name in wanted if name not in stored]
        inside = [name for name in unknown if _is_in_a_layer(name, self.config.decoder.num_layers)]
        groups = {
            "missing": missing,
            "unknown": unknown if missing else inside,
            "of the wrong shape": [
                f"{name} is {list(tensor.shape)}, not {list(wanted[name])}"
                for name, tensor in found.items()
                if tensor.shape != wanted[name]
            ],
            f"of a type that is not read (accepted: {', '.join(DTYPES)})": [
                f"{name} is {tensor.dtype}" for name, tensor in found.items() if tensor.dtype not in DTYPES
            ],
        }
        problems = [f"{len(names)} {what}: {some(names)}" for what, names in groups.items() if names]
        if problems:
            raise ConfigError(f"the weights in {self.path} do not fit its config.json; {'; '.join(problems)}")
        return unknown


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    """The values of a published tensor. Raises ConfigError where one of them is none: no width mends it."""
    if not np.isfinite(values).all():
        raise ConfigError(
            f"the weights hold values that are not finite, in {name}; the checkpoint is damaged: fetch it "
            "again"
        )
    return values


def _is_in_a_layer(name: str, num_layers: int) -> bool:
    """Whether a tensor lies where a layer computes: one that is not known there would be missed."""
    found = _LAYER.match(name)
    return found is not None and int(found[1]) < num_layers


def _is_copied_head(stored: Mapping[str, PublishedTensor]) -> bool:
    """Whether the stored head is the embedding table once more. Some that are called tied have their own."""
    head, table = stored.get(HEAD), stored.get(EMBEDDING)
    if head is None or table is None or head.shape != table.shape:
        return False
    step = max(1, _SLAB_ELEMENTS // max(1, math.prod(head.shape[1:])))
    return all(
        np.array_equal(head.rows(start, stop), table.rows(start, stop), equal_nan=True)
        for start in range(0, head.shape[0], step)
        for stop in (min(start + step, head.shape[0]),)
    )


def _container(path: Path, base: Path | None) -> GgufCheckpoint | AdaptedCheckpoint | None:
    """What a checkpoint is in that is no folder of its own; None for one that is."""
    if is_gguf(path):
        return GgufCheckpoint(path)
    return AdaptedCheckpoint(path, base) if is_adapter(path) else None
