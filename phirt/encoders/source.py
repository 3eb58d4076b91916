"""Reads the bytes of a media file with limits, and names them by content.

Knows paths and sizes. Knows nothing of formats.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from phirt.errors import MediaError


def read_source(source: str | Path | bytes, kind: str, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of `source` (a path, or the file's content itself) and a short name for messages.

    Raises MediaError for what is missing, no regular file, empty, unreadable or larger than `max_bytes`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), f"the given {kind} ({len(source)} bytes)"
    elif isinstance(source, str | Path):
        name = str(source)
        data = _read_file(Path(source), kind, max_bytes)
    else:
        raise MediaError(f"{kind}: got {type(source).__name__}, accepted: a path or the bytes of a file")
    if not data:
        raise MediaError(f"{name} is empty; give a complete {kind} file")
    if len(data) > max_bytes:
        raise MediaError(
            f"{name} has more than {max_bytes} bytes, the limit of this bundle; give a smaller {kind} file"
        )
    return data, name


def _read_file(path: Path, kind: str, max_bytes: int) -> bytes:
    try:
        if path.is_dir():
            raise MediaError(f"{path} is a folder; name one {kind} file")
        if not path.exists():
            raise MediaError(f"{path} does not exist; check the {kind} file's name")
        if not path.is_file():
            raise MediaError(f"{path} is no regular file; name one {kind} file")
        with path.open("rb") as stream:
            return stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise MediaError(f"{path} cannot be read: {error}; check the file and its permissions") from error


def content_key(*parts: bytes) -> str:
    """Hex sha256 over the parts, each with its length, so that no two lists of parts share a key by
    concatenation.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
