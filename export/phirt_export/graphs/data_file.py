"""The external data file of one graph: bytes appended once, referenced by any number of initializers.

Knows offsets, alignment, the digest of what was written, and which pieces an interrupted run has left. Knows
nothing of quantization or of what the bytes mean. Writing is sequential, so a weight larger than memory can
be appended slab by slab.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from phirt_export.journal import Entry, Journal

# Memory-mapped weights are read in vectors of 64 bytes; page alignment for large ones lets the runtime map
# them singly.
_SMALL_ALIGNMENT = 64
_LARGE_ALIGNMENT = 4096
_LARGE = 1 << 20
# So much may be lost to an interruption. Waiting for the disk after every small vector would cost more than
# writing those few again.
_SYNC_BYTES = 8 << 20
_CHUNK = 1 << 20

Part = tuple[Iterable[np.ndarray], int]


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


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one call of `append` has put into the file: its extents, and the figures noted about it."""

    extents: tuple[Extent, ...]
    note: tuple[float, ...]


class DataFile:
    """Appends tensors to `path`. Use as a context manager; leaving it brings what is finished to the disk.

    With a journal, pieces that an interrupted run has left on the disk are not asked for again: `append`
    returns them without touching its slabs, as long as the same pieces come in the same order.
    `on_kept` is called with the key of each of them.
    """

    def __init__(
        self, path: Path, journal: Journal | None = None, on_kept: Callable[[str], None] | None = None
    ) -> None:
        self.path = path
        self._journal, self._on_kept = journal, on_kept
        self._end = self._count = self._unsynced = 0
        self._pending: list[Entry] = []
        self._arrays: dict[tuple[str, bytes], Extent] = {}
        entries = journal.entries(path.name) if journal is not None else []
        self._file = path.open("r+b" if entries and path.is_file() else "w+b")
        self._digest = hashlib.sha256()
        self._kept = deque(self._intact(entries))
        self._cut(self._kept[-1].stop if self._kept else 0)

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            if kind is not None:  # a disk that is full shall not hide why the block ended
                stack.enter_context(contextlib.suppress(OSError))
            stack.callback(self._file.close)
            if kind is None:
                self._forget_kept()
            self._sync()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._end

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes so far."""
        assert not self._kept, "pieces of an interrupted run are still to come"
        return self._digest.hexdigest()

    def append(self, key: str, parts: Sequence[Part], note: Callable[[], tuple[float, ...]] = tuple) -> Piece:
        """Write `parts` as one extent each; together they are one piece, finished or not.

        Args:
            key: names the piece, for whoever continues.
            parts: slabs that are written one after the other, and their bytes in all (known ahead: they
                decide alignment). The slabs of a part are asked for when those before it are written.
            note: figures about the piece, asked for when it is written.
        """
        extents = self._place([length for _, length in parts])
        stop = extents[-1].offset + extents[-1].length
        lengths = tuple(extent.length for extent in extents)
        number, self._count = self._count, self._count + 1
        known = self._kept[0] if self._kept else None
        if known is not None and (known.key, known.lengths, known.stop) == (key, lengths, stop):
            self._kept.popleft()
            self._end = stop
            if self._on_kept is not None:
                self._on_kept(key)
            return Piece(extents, known.note)
        self._forget_kept()
        start = self._end
        for (slabs, _), extent in zip(parts, extents, strict=True):
            self._write(extent.offset - self._end, slabs)
            written = self._end - extent.offset
            assert written == extent.length, f"{written} bytes written where {extent.length} were announced"
        piece = Piece(extents, note())
        digest = self._digest.hexdigest()
        self._pending.append(Entry(self.path.name, number, key, lengths, stop, digest, piece.note))
        self._unsynced += stop - start
        if self._unsynced >= _SYNC_BYTES:
            self._sync()
        return piece

    def append_array(self, key: str, array: np.ndarray) -> Extent:
        """Write one whole array, once for all that ask for the same bytes under the same key."""
        content = (key, hashlib.sha256(np.ascontiguousarray(array).data).digest())
        if content not in self._arrays:
            self._arrays[content] = self.append(key, [([array], array.nbytes)]).extents[0]
        return self._arrays[content]

    def read(self, offset: int, length: int) -> np.ndarray:
        """Bytes uint8 [length] of a finished piece."""
        self._file.flush()
        with self.path.open("rb") as file:
            file.seek(offset)
            raw = np.frombuffer(file.read(length), np.uint8)
        assert raw.size == length, f"{self.path} holds {raw.size} of {length} bytes at {offset}"
        return raw

    def _place(self, lengths: Sequence[int]) -> tuple[Extent, ...]:
        """Aligned extents of these lengths, the first as near to the end of the file as can be."""
        end, extents = self._end, []
        for length in lengths:
            end += -end % (_LARGE_ALIGNMENT if length >= _LARGE else _SMALL_ALIGNMENT)
            extents.append(Extent(self.path.name, end, length))
            end += length
        return tuple(extents)

    def _write(self, padding: int, slabs: Iterable[np.ndarray]) -> None:
        self._put(b"\0" * padding)
        for slab in slabs:
            self._put(np.ascontiguousarray(slab).reshape(-1).view(np.uint8).data)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._end += len(data)

    def _sync(self) -> None:
        """Bring finished pieces to the disk, and then into the journal: never the other way round."""
        self._file.flush()
        if self._journal is not None and self._pending:
            os.fsync(self._file.fileno())
            self._journal.add(self._pending)
        self._pending.clear()
        self._unsynced = 0

    def _intact(self, entries: Sequence[Entry]) -> list[Entry]:
        """The first of these pieces, up to one whose bytes are not those that were written; digests them."""
        intact: list[Entry] = []
        digest, position = hashlib.sha256(), 0
        for entry in entries:
            position += self._read_into(digest, entry.stop - position)
            if position != entry.stop or digest.hexdigest() != entry.sha256:
                break
            intact.append(entry)
            self._digest = digest.copy()
        return intact

    def _read_into(self, digest: hashlib._Hash, count: int) -> int:
        """Digest up to `count` more bytes of the file; returns how many there were."""
        done = 0
        while done < count and (chunk := self._file.read(min(_CHUNK, count - done))):
            digest.update(chunk)
            done += len(chunk)
        return done

    def _forget_kept(self) -> None:
        """Drop pieces of an earlier run that this one does not write."""
        if not self._kept:
            return
        self._kept.clear()
        self._digest = hashlib.sha256()
        self._file.seek(0)
        self._read_into(self._digest, self._end)
        self._cut(self._end)

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        self._file.seek(end)
