"""What every format of sound hands over, and how it says that a file cannot be used.

Knows blocks of samples and streams. Knows no format and no file's name: whoever has the name adds it.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.float32]
"""float32 [samples, channels], full scale at -1 and 1."""

BLOCK = 1 << 16  # samples of all channels together that are decoded at once


class DamagedError(Exception):
    """A file is of a known format, and a part of it is missing or wrong."""


class UndecodableError(Exception):
    """A file holds nothing that can be heard, or nothing that this installation can decode."""


class MissingPackageError(Exception):
    """A file could be decoded with a package that is not installed; the first argument is its name."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """A recording whose header is read: `frames` samples a channel (None: not known) at `rate` Hz.

    `blocks` raises DamagedError where less comes than the file declares. `notes` are doubts worth a line.
    """

    rate: int
    channels: int
    frames: int | None
    blocks: Iterator[Block]
    notes: tuple[str, ...] = ()


def size_of(stream: BinaryIO) -> int:
    """The bytes of a stream that can seek; its position is kept."""
    here = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(here)
    return end


def read_at(stream: BinaryIO, offset: int, count: int) -> bytes:
    """Up to `count` bytes from `offset` on."""
    stream.seek(offset)
    return stream.read(count)


class ByteReader:
    """Bytes of a stream by position, up to `end`: for those who go through it in small steps."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self.end = end
        self._stream = stream
        self._offset, self._data = 0, b""

    def at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from `position` on."""
        inside = position - self._offset
        if inside < 0 or inside + count > len(self._data):
            self._data = read_at(self._stream, position, min(BLOCK, max(0, self.end - position)))
            self._offset, inside = position, 0
        return self._data[inside : inside + count]


class Part(io.RawIOBase):
    """A file made of `head` and then `size` bytes of another stream from `offset` on. Reads and seeks."""

    def __init__(self, stream: BinaryIO, offset: int, size: int, head: bytes = b"") -> None:
        self._stream = stream
        self._offset = offset
        self._head = head
        self._size = len(head) + size
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves as any file does."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` as far as bytes are left."""
        view = memoryview(buffer).cast("B")
        data = self._head[self._position : self._position + len(view)]
        wanted = min(len(view), self._size - self._position)
        if len(data) < wanted:
            start = self._offset + self._position + len(data) - len(self._head)
            data += read_at(self._stream, start, wanted - len(data))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
