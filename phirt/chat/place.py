"""Where a saved conversation lies: whether it may be written there, and one process at a time.

Knows the file system, and that a saved conversation is a zip archive with a certain part. Knows nothing of
what else is in it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from phirt.errors import ConversationError

if TYPE_CHECKING:
    from filelock import BaseFileLock

DOCUMENT = "conversation.json"  # what every saved conversation has
# What reading a zip archive with a damaged directory can raise, and what the system refuses.
DAMAGED = (OSError, EOFError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError)

_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_MAX_NAME_BYTES = 255  # of most file systems
_MAX_DIRECTORY_BYTES = 2 << 20  # of some 100 bytes for each part


@contextlib.contextmanager
def reserve(
    path: str | Path, *, wait: bool = False, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Keeps the place of a conversation for this process until the block ends, after trying whether it can be
    saved there: to be entered before the conversation is read and answered.

    Where another process has it, raises ConversationError, or waits; `on_wait` is called before that. While
    it is kept, an empty file lies beside it, named after it with a dot in front and `.lock` behind. Raises
    ConversationError also for a folder that does not exist or cannot be written to, and for a file that is no
    saved conversation.
    """
    path = Path(path)
    if not may_replace(path):
        raise ConversationError(f"{path} exists and is no saved conversation; choose another name")
    try:
        place = Path(os.path.realpath(path))  # behind a link, where the file is
        with tempfile.TemporaryFile(dir=place.parent):
            pass
        release = _acquire(_lock_place(place), wait, on_wait)
    except (OSError, ValueError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConversationError(
            f"a conversation cannot be saved to {path}: {reason}; choose another place"
        ) from error
    if release is None:
        raise ConversationError(
            f"{path} is being used by another phirt; wait until it has ended, or name another file"
        )
    try:
        yield
    finally:
        release()


def _acquire(place: Path, wait: bool, on_wait: Callable[[], None] | None) -> Callable[[], None] | None:
    """Locks the file `place`. Returns what unlocks and removes it; None where another process has it and it
    is not to `wait`. Raises OSError.
    """
    from filelock import FileLock, Timeout  # 40 ms, for this only

    lock = FileLock(place, thread_local=False)
    timeout = 0.0
    while True:
        # Whoever has the lock removes the file. What is locked must be the file that has the name now: it is,
        # if the name had this file before and has it after; while it is open nothing else can become it.
        seen = os.open(place, _LOCK_FLAGS, 0o600)
        try:
            state = os.fstat(seen)
            if not stat.S_ISREG(state.st_mode) or state.st_size:  # phirt writes nothing into its own
                raise FileExistsError(errno.EEXIST, f"{place.name} beside it is no lock of phirt's")
            lock.acquire(timeout=timeout)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(seen), place.lstat()):
                    return partial(_release, lock, place)
            lock.release()
        except Timeout:
            if not wait:
                return None
            if on_wait is not None:
                on_wait()
            on_wait, timeout = None, -1
        finally:
            os.close(seen)


def _release(lock: BaseFileLock, place: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps what is open
        place.unlink()
    lock.release()


class BoundedFile(io.BufferedReader):
    """A file of which at most `limit` bytes are read at once: the directory of a zip archive is, and a forged
    one of gigabytes takes minutes to understand.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.limit: int | None = _MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file. Raises ValueError beyond the limit."""
        if self.limit is not None and size is not None and size > self.limit:
            raise ValueError(f"its directory has {size} bytes, at most {self.limit} are read")
        return super().read(size)


def may_replace(path: Path) -> bool:
    """Whether nothing is there, or a saved conversation."""
    try:
        if not path.exists():
            return True
        if not (path.is_file() and zipfile.is_zipfile(path)):
            return False
        with BoundedFile(path) as stream, zipfile.ZipFile(stream) as archive:
            return DOCUMENT in archive.namelist()
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise ConversationError(f"{path} cannot be saved to: {reason}; choose another name") from error


def _lock_place(path: Path) -> Path:
    """Beside the conversation, so that whoever sees the one sees the other."""
    name = f".{path.name}.lock"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.lock"
    return path.with_name(name)
