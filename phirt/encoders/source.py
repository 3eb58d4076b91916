"""Reads media from where people have them (paths, pipes, open files, bytes), with limits, and names them.

Knows paths, streams and sizes. Knows nothing of formats.
"""

from __future__ import annotations

import hashlib
import io
import os
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from phirt.errors import MediaError

FileSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path (a named pipe too), a `file://` address, a file's content, or a file opened for reading bytes."""

T = TypeVar("T")

_BLOCK = 1 << 16
_ADDRESSES = ("http", "https", "ftp", "s3", "gs", "data")


def read_source(source: FileSource, kind: str, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of `source` and a short name for messages.

    An open file is read from where it stands to its end. Raises MediaError for what is missing, no file or
    pipe, empty, unreadable or larger than `max_bytes`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _within(data, f"the given {kind} ({len(data)} bytes)", kind, max_bytes)
    if hasattr(source, "read"):
        name = _stream_name(source, kind)
        return _within(_guarded(lambda: _read(source, max_bytes), name, kind), name, kind, max_bytes)
    path = _path(source, kind)
    return _within(
        _guarded(lambda: _read_path(path, kind, max_bytes), path, kind), str(path), kind, max_bytes
    )


def open_source(source: FileSource, kind: str, max_bytes: int) -> tuple[BinaryIO, str]:
    """A stream over `source` that can seek, and a short name: for what is decoded piece by piece.

    A regular file is opened where it lies, however large; anything else is read into memory, up to
    `max_bytes`. The caller closes the stream. Raises MediaError as `read_source` does.
    """
    if isinstance(source, str | os.PathLike):
        path = _path(source, kind)
        mode = _guarded(lambda: _checked_mode(path, kind), path, kind)
        if stat.S_ISREG(mode):
            stream = _guarded(lambda: path.open("rb"), path, kind)
            if os.fstat(stream.fileno()).st_size:
                return stream, str(path)
            stream.close()
    data, name = read_source(source, kind, max_bytes)
    return io.BytesIO(data), name


def content_key(*parts: bytes) -> str:
    """Hex sha256 over the parts, each with its length, so that no two lists of parts share a key by
    concatenation.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _within(data: bytes, name: str, kind: str, max_bytes: int) -> tuple[bytes, str]:
    if not data:
        raise MediaError(f"{name} is empty; give a complete {kind} file")
    if len(data) > max_bytes:
        raise MediaError(
            f"{name} has more than {max_bytes} bytes, the limit of this bundle; give a smaller {kind} file"
        )
    return data, name


def _guarded(work: Callable[[], T], name: str | Path, kind: str) -> T:
    """What `work` returns; what the system refuses becomes a MediaError."""
    try:
        return work()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL, a file that is closed
        reason = getattr(error, "strerror", None) or error
        raise MediaError(
            f"{name} cannot be read: {reason}; check the {kind} file and its permissions"
        ) from error


def _path(source: object, kind: str) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise MediaError(
            f"{kind}: got {type(source).__name__}, accepted: a path, the bytes of a file, or an open file"
        )
    text = os.fsdecode(os.fspath(source))
    scheme, _, rest = text.partition(":")
    if rest.startswith("/"):  # a Path keeps one slash of an address's two
        if scheme.lower() == "file":
            from urllib.request import url2pathname  # 14 ms, for such addresses only

            return Path(url2pathname(urlsplit(text).path))
        if scheme.lower() in _ADDRESSES:
            raise MediaError(f"{text}: phirt opens no network addresses; download it and name the file")
    return Path(text)


def _checked_mode(path: Path, kind: str) -> int:
    """The file's mode, of a regular file or a pipe. Devices are refused: some of them never end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise MediaError(f"{path} does not exist; check the {kind} file's name") from error
    if stat.S_ISDIR(mode):
        raise MediaError(f"{path} is a folder; name one {kind} file")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        what = "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise MediaError(f"{path} is no regular file but {what}; name one {kind} file")
    return mode


def _read_path(path: Path, kind: str, max_bytes: int) -> bytes:
    _checked_mode(path, kind)
    with path.open("rb") as stream:
        return _read(stream, max_bytes)


def _read(stream: Any, max_bytes: int) -> bytes:
    """Up to one byte more than `max_bytes`, in pieces: a pipe has no size, and memory follows what came."""
    content = bytearray()
    while len(content) <= max_bytes:
        piece = stream.read(min(_BLOCK, max_bytes + 1 - len(content)))
        if piece is None:  # a pipe that was handed over as non-blocking, and nothing is there yet
            select.select([stream], [], [])
            continue
        if isinstance(piece, str):
            raise MediaError(f"{_stream_name(stream, 'file')} is opened as text; open it with mode 'rb'")
        if not piece:
            break
        content += piece
    return bytes(content)


def _stream_name(stream: object, kind: str) -> str:
    name = getattr(stream, "name", None)
    if name == "<stdin>" or name == 0:
        return "standard input"
    return name if isinstance(name, str) and name else f"the given {kind}"
