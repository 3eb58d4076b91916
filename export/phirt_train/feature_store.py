"""Arrays on disk by name, in one file that only grows: what frozen parts of a model make of media, kept for
the steps and stages to come.

Knows bytes and names. Knows nothing of what the arrays are. One process writes; a record that an interruption
has cut short is left out and written again.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float16]


class FeatureStore:
    """float16 arrays by name, in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._index_path, data = folder / "index.jsonl", folder / "features.bin"
        self._data = data.open("a+b")
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        size, whole = data.stat().st_size, 0
        for line in self._index_path.read_bytes().splitlines(True) if self._index_path.is_file() else ():
            place = _parsed(line)
            if place is None or place[1] + 2 * math.prod(place[2]) > size:
                break
            self._places[place[0]] = place[1:]
            whole += len(line)
        if self._index_path.is_file():
            with self._index_path.open("r+b") as index:
                index.truncate(whole)
        self._index = self._index_path.open("ab")
        self._end = size

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str) -> Features:
        """The array of this name."""
        offset, shape = self._places[name]
        content = self._read(offset, 2 * math.prod(shape))
        return np.frombuffer(content, np.float16).reshape(shape)

    def _read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # processes that share the open file share its position, too
            return os.pread(self._data.fileno(), size, offset)
        self._data.seek(offset)
        return self._data.read(size)

    def write(self, name: str, array: Features) -> None:
        """Keep an array under a name that is new."""
        assert name not in self._places
        offset, content = self._end, np.ascontiguousarray(array, np.float16).tobytes()
        self._data.seek(0, 2)
        self._data.write(content)
        self._data.flush()
        self._end += len(content)
        line = json.dumps([name, offset, *array.shape]) + "\n"
        self._index.write(line.encode())
        self._index.flush()
        self._places[name] = (offset, tuple(array.shape))

    def close(self) -> None:
        """Close the files."""
        self._data.close()
        self._index.close()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parsed(line: bytes) -> tuple[str, int, tuple[int, ...]] | None:
    """A line of the index; None for one that was cut short."""
    try:
        name, offset, *shape = json.loads(line)
    except ValueError:
        return None
    return (name, offset, tuple(shape)) if line.endswith(b"\n") else None
