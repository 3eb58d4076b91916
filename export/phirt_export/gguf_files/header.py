"""A GGUF file's header: metadata and the list of tensors, checked against the file before memory is taken.

Knows the layout of version 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and the sizes
of block types, which the `gguf` library lists. Knows nothing of what keys or tensors mean. Everything in a
header is taken for hostile: counts, lengths, types, offsets, nesting and names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from phirt.errors import ConfigError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEYS, _MAX_TENSORS = 4096, 1 << 17
_MAX_NAME_BYTES = 1024
_MAX_ITEMS = 1 << 22  # of one array: a vocabulary, or its merges
_MAX_TEXT_BYTES = 1 << 20  # of one string: a chat template
_MAX_HEADER_BYTES = 1 << 28
_MAX_AXES = 4
_DEFAULT_ALIGNMENT, _MAX_ALIGNMENT = 32, 1 << 20
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_REMEDY = "fetch the file again"


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor: its block type, its shape (rows first), and where its bytes lie."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An opened file: metadata by key (numbers, booleans, texts, and lists of these), tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    data: mmap.mmap
    state: tuple[Any, ...]


def is_gguf(path: Path) -> bool:
    """Whether the path is a file that is named or begins like one of these."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix.lower() == ".gguf" or file.read(len(MAGIC)) == MAGIC
    except OSError:  # said by whoever opens it
        return path.suffix.lower() == ".gguf"


def read_header(path: Path) -> GgufFile:
    """Open a file and check its header.

    Raises:
        ConfigError: it cannot be read, is no GGUF file, is truncated, or its header lies.
    """
    try:
        state = path.stat()
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ConfigError(f"{path} is not a GGUF file: it does not begin with 'GGUF'; {_REMEDY}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; {_REMEDY}") from error
    try:
        metadata, tensors, end = _Reader(data).header()
    except struct.error as error:
        raise ConfigError(f"{path} is truncated: its header does not end; {_REMEDY}") from error
    except ValueError as error:
        raise ConfigError(f"{path} has a damaged header: {error}; {_REMEDY}") from error
    digest = hashlib.sha256(data[:end]).hexdigest()
    return GgufFile(path, metadata, tensors, data, (path.name, state.st_size, state.st_mtime_ns, digest))


class _Reader:
    """Reads on from a place in the file; raises struct.error past its end, ValueError for what cannot be."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)

    def header(self) -> tuple[dict[str, Any], dict[str, TensorEntry], int]:
        """(metadata, tensors, where the header ends)."""
        version = self._number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(struct.pack("<I", version), "big") in _VERSIONS
            raise ValueError(
                "its numbers are big-endian, which is not read"
                if swapped
                else f"version {version} is not read, accepted: 2 and 3"
            )
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > _MAX_TENSORS or keys > _MAX_KEYS:
            raise ValueError(f"it claims {tensors} tensors and {keys} keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text(_MAX_NAME_BYTES)
            if key in metadata:
                raise ValueError(f"the key {key[:80]!r} is there twice")
            metadata[key] = self._value(self._number("I"))
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"'general.alignment' is {alignment!r:.40}, which is no power of two")
        listed = [self._tensor() for _ in range(tensors)]
        end = self._at
        first = end + -end % alignment
        placed = {name: entry for name, entry in self._placed(listed, first, alignment)}
        if len(placed) != len(listed):
            raise ValueError("two tensors have the same name")
        return metadata, placed, end

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._advance(struct.calcsize(f"<{code}"))
        return value

    def _advance(self, count: int) -> None:
        self._at += count
        if self._at > min(len(self._data), _MAX_HEADER_BYTES):
            raise struct.error("past the end")

    def _text(self, limit: int = _MAX_TEXT_BYTES) -> str:
        length = self._number("Q")
        if length > limit:
            raise ValueError(f"a text claims {length} bytes")
        start = self._at
        self._advance(length)
        return self._data[start : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"a value has the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if inner not in _SCALARS and inner != _STRING:
            raise ValueError(f"a list has items of type {inner}, which is not read")
        if count > _MAX_ITEMS:
            raise ValueError(f"a list claims {count} items")
        if inner == _STRING:
            return [self._text() for _ in range(count)]
        code = f"<{count}{_SCALARS[inner]}"
        start = self._at
        self._advance(struct.calcsize(code))
        return list(struct.unpack_from(code, self._data, start))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self._text(_MAX_NAME_BYTES), self._number("I")
        if not 1 <= axes <= _MAX_AXES:
            raise ValueError(f"the tensor {name[:80]!r} has {axes} axes")
        sizes = tuple(self._number("Q") for _ in range(axes))
        return name, sizes[::-1], self._number("I"), self._number("Q")

    def _placed(
        self, listed: list[tuple[str, tuple[int, ...], int, int]], first: int, alignment: int
    ) -> Iterator[tuple[str, TensorEntry]]:
        for name, shape, number, offset in listed:
            shown = repr(name[:80])
            try:
                kind = GGMLQuantizationType(number)
                block, size = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise ValueError(f"the tensor {shown} has the unknown type {number}") from None
            if 0 in shape or shape[-1] % block:
                raise ValueError(f"the tensor {shown} of {kind.name} has the shape {list(shape)}")
            if offset % alignment:
                raise ValueError(f"the tensor {shown} lies at {offset}, which is not aligned")
            start = first + offset
            stop = start + math.prod(shape) // block * size
            if stop > len(self._data):
                raise ValueError(
                    f"the tensor {shown} ends at byte {stop}, and the file has {len(self._data)}: it is "
                    "truncated"
                )
            yield name, TensorEntry(kind, shape, start, stop)
