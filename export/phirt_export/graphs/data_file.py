"""The external data file of one graph: bytes appended once, referenced by any number of initializers.

Knows offsets and alignment. Knows nothing of quantization or of what the bytes mean. Writing is sequential,
so a weight larger than memory can be appended slab by slab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

# Memory-mapped weights are read in vectors of 64 bytes; page alignment for large ones lets the runtime map
# them singly.
_SMALL_ALIGNMENT = 64
_LARGE_ALIGNMENT = 4096
_LARGE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Extent:
    """A stretch of the data file, in bytes."""

    location: str
    offset: int
    length: int

    def tensor(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.ExternalTensor:
        """An initializer's value over this extent; several may share one extent under different shapes."""
        return ir.ExternalTensor(
            self.location, self.offset, self.length, dtype, shape=ir.Shape(shape), name=name
        )


class DataFile:
    """Appends tensors to `path`. Use as a context manager; `close` flushes to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, slabs: Iterable[np.ndarray], expected_bytes: int) -> Extent:
        """Write `slabs` one after the other as one extent of `expected_bytes` (known ahead, it decides
        alignment).
        """
        alignment = _LARGE_ALIGNMENT if expected_bytes >= _LARGE else _SMALL_ALIGNMENT
        self._file.write(b"\0" * (-self._file.tell() % alignment))
        offset = self._file.tell()
        for slab in slabs:
            self._file.write(np.ascontiguousarray(slab).data)
        length = self._file.tell() - offset
        assert length == expected_bytes, f"{length} bytes written where {expected_bytes} were announced"
        return Extent(self.path.name, offset, length)

    def append_array(self, array: np.ndarray) -> Extent:
        """Write one whole array."""
        return self.append([array], array.nbytes)
