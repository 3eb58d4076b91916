"""Safetensors files: tables of contents checked against the file, rows read through a memory map.

Knows the container and the shard index. Knows nothing of what the tensors mean. Everything in a header or an
index is taken for hostile: sizes, offsets, types, nesting, and the names of files.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Safetensors names of the element types that weights come in; bfloat16 is the upper half of a float32.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_MAX_HEADER_BYTES = 16 << 20  # about a hundred thousand tensors
_MAX_JSON_BYTES = 16 << 20
_MAX_AXES = 8
_MAX_SHARDS = 1024
# From this size on, pages that were read are given back: reading a file once must not keep it in memory.
_RELEASED_BYTES = 1 << 16
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHOWN = 8


def read_json(path: Path, remedy: str, limit: int = _MAX_JSON_BYTES) -> Fields:
    """The JSON object in `path`, of at most `limit` bytes.

    Raises:
        ConfigError: the file is unreadable, too large, nested too deeply or no JSON object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}; {remedy}") from error
    if len(raw) > limit:
        raise ConfigError(f"{path} is larger than {limit} bytes; {remedy}")
    return Fields(parse_json(raw, str(path), ConfigError, remedy), str(path), ConfigError, remedy)


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of an opened file: element type, shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    data: mmap.mmap

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis, float32; only these are read from the file."""
        row = (self.stop - self.start) // max(1, self.shape[0])
        values = self._read(self.start + start * row, self.start + stop * row)
        return values.reshape(stop - start, *self.shape[1:])

    def tensor(self) -> np.ndarray:
        """The whole tensor, float32."""
        return self._read(self.start, self.stop).reshape(self.shape)

    def _read(self, start: int, stop: int) -> np.ndarray:
        if self.dtype not in DTYPES:
            raise ConfigError(f"weights of type {self.dtype} are not read; accepted: {', '.join(DTYPES)}")
        element = DTYPES[self.dtype]
        raw = np.frombuffer(self.data, element, (stop - start) // element.itemsize, start)
        if self.dtype == "BF16":
            widened = raw.astype(np.uint32)
            widened <<= 16
            values: np.ndarray = widened.view(np.float32)
        else:
            values = raw.astype(np.float32)
        if stop - start >= _RELEASED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            first = start - start % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_DONTNEED, first, stop - first)
        return values


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder: of its one file, or of all shards that its index names.

    Raises:
        ConfigError: there are no weights, they are pickled, or a file is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; a checkpoint is a folder with config.json and {WEIGHTS_NAME}"
        )
    if (folder / WEIGHTS_NAME).is_file():
        return open_file(folder / WEIGHTS_NAME)
    if (folder / INDEX_NAME).is_file():
        return _open_shards(folder)
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if pickled:
        raise ConfigError(
            f"{folder} holds pickled weights ({some(pickled)}), which can run code when opened and are not "
            f"read; convert them to {WEIGHTS_NAME}"
        )
    raise ConfigError(
        f"{folder} holds no {WEIGHTS_NAME} and no {INDEX_NAME}; save the weights as safetensors"
    )


def open_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name.

    Raises:
        ConfigError: it is missing, truncated, or its header lies.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise ConfigError(f"{path} is not a safetensors file, or it is truncated")
            text = file.read(length)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}; fetch the checkpoint again"
        ) from error
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return {name: _stored(raw, 8 + length, size, data) for name, raw in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} has a damaged header, or it is truncated: {error}") from error


def _open_shards(folder: Path) -> dict[str, StoredTensor]:
    """Tensors of all shards. The index must agree with them, and names only files beside it."""
    path = folder / INDEX_NAME
    index = read_json(path, "fetch the checkpoint again")
    placed = index.raw("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise index.refusal("'weight_map' must name one file for each tensor")
    shards = sorted(set(placed.values()))
    for shard in shards[:_MAX_SHARDS]:
        if not shard.endswith(".safetensors") or any(c in "/\\:" or ord(c) < 32 for c in shard):
            raise ConfigError(
                f"{path} names {shard[:80]!r}; accepted are plain names of .safetensors files beside it"
            )
    if len(shards) > _MAX_SHARDS:
        raise ConfigError(f"{path} names {len(shards)} files, accepted: {_MAX_SHARDS} at most")
    if lost := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ConfigError(f"{folder} lacks {some(lost)}, which {INDEX_NAME} names; fetch the missing shards")
    opened = {shard: open_file(folder / shard) for shard in shards}
    if wrong := [name for name, shard in placed.items() if name not in opened[shard]]:
        raise ConfigError(
            f"{path} names {len(wrong)} tensors that their shards do not hold: {some(wrong)}; fetch the "
            "checkpoint again"
        )
    merged: dict[str, StoredTensor] = {}
    for shard, tensors in opened.items():
        if twice := sorted(merged.keys() & tensors.keys()):
            raise ConfigError(f"{folder / shard} repeats tensors of another shard: {some(twice)}")
        merged.update(tensors)
    return merged


def _stored(raw: Mapping[str, Any], base: int, size: int, data: mmap.mmap) -> StoredTensor:
    shape, offsets, dtype = raw["shape"], raw["data_offsets"], raw["dtype"]
    if not all(type(number) is int for number in (*shape, *offsets)) or len(shape) > _MAX_AXES:
        raise ValueError(f"shape {shape!r:.80} or offsets {offsets!r:.80}")
    start, stop = (base + offset for offset in offsets)
    if not base <= start <= stop <= size or min(shape, default=0) < 0:
        raise ValueError("a tensor lies outside the file")
    # Integer bookkeeping such as batch counters is listed but never read, so its type need not be known.
    if dtype in DTYPES and stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{stop - start} bytes for shape {list(shape)} of {dtype}")
    return StoredTensor(str(dtype), tuple(shape), start, stop, data)
