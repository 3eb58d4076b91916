"""Files that appear whole or not at all: written beside their place, put there by one rename.

Knows file systems. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
PRIVATE = 0o600  # for what is nobody else's to read
_NAME_SHOWN = 32  # characters of the final name in the one written to: names have at most 255 bytes


@contextlib.contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A new file that takes `path`'s place when the block ends well and vanishes otherwise.

    What was there keeps its permissions; a new file has those of `mode` that the user's umask leaves. Behind
    a link the file that it names is replaced. The content is on the disk before it takes the place. Raises
    OSError.
    """
    path = Path(os.path.realpath(path))
    staged = path.with_name(f".{path.name[:_NAME_SHOWN]}.{os.urandom(4).hex()}.tmp")
    descriptor = os.open(staged, _NEW, mode)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            with contextlib.suppress(FileNotFoundError):
                staged.chmod(path.stat().st_mode & 0o777)
            os.fsync(descriptor)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text as one whole, with line ends as they are. Raises OSError."""
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8"))


def sync_file(path: Path) -> None:
    """Has the system write the file's content to the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Has the system write the folder's names to the disk, where it can be told to."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows keeps names in order by itself
        return
    with contextlib.suppress(OSError):  # a folder that may not be listed; file systems that refuse it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
