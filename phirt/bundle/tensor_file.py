"""One safetensors file: its table of contents checked against the file, rows read through a memory map.

Knows the container. Knows nothing of what the tensors mean. Everything in a header is taken for hostile:
sizes, offsets, types and nesting.
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
import numpy.typing as npt

from phirt.errors import ConfigError, PhirtError

Values = npt.NDArray[np.float32]

# Safetensors names of the element types that weights come in; bfloat16 is the upper half of a float32.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_MAX_HEADER_BYTES = 16 << 20  # about a hundred thousand tensors
_MAX_AXES = 8
# From this size on, pages that were read are given back: reading a file once must not keep it in memory.
_RELEASED_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of an opened file: element type, shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    data: mmap.mmap

    def rows(self, start: int, stop: int) -> Values:
        """Rows start..stop-1 along the first axis, float32; only these are read from the file."""
        row = (self.stop - self.start) // max(1, self.shape[0])
        values = self._read(self.start + start * row, self.start + stop * row)
        return values.reshape(stop - start, *self.shape[1:])

    def tensor(self) -> Values:
        """The whole tensor, float32."""
        return self._read(self.start, self.stop).reshape(self.shape)

    def _read(self, start: int, stop: int) -> Values:
        if self.dtype not in DTYPES:
            raise ConfigError(f"weights of type {self.dtype} are not read; accepted: {', '.join(DTYPES)}")
        element = DTYPES[self.dtype]
        raw = np.frombuffer(self.data, element, (stop - start) // element.itemsize, start)
        if self.dtype == "BF16":
            widened = raw.astype(np.uint32)
            widened <<= 16
            values: Values = widened.view(np.float32)
        else:
            with np.errstate(over="ignore"):  # a float64 may be out of range: infinite, as it should be
                values = raw.astype(np.float32)
        if stop - start >= _RELEASED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            first = start - start % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_DONTNEED, first, stop - first)
        return values


def open_file(
    path: Path, error: type[PhirtError] = ConfigError, remedy: str = "fetch the checkpoint again"
) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name. Raises `error`, which ends in `remedy`, where it is
    missing, truncated, or its header lies.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise error(f"{path} is not a safetensors file, or it is truncated; {remedy}")
            text = file.read(length)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror or cause}; {remedy}") from cause
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return {name: _stored(raw, 8 + length, size, data) for name, raw in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise error(f"{path} has a damaged header, or it is truncated: {cause}; {remedy}") from cause


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
