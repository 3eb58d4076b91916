"""A run's folder belongs to one process at a time, and what lies in it says what it is a function of.

Knows locks and the small file beside a thing that holds its identity. Knows nothing of what the things are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import write_text
from phirt.runtime.file_lock import take_lock

_LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems that have none


@contextlib.contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """The folder is this process's until the block ends.

    Raises:
        ConfigError: another process trains in it.
    """
    with (run_dir / _LOCK_NAME).open("ab") as file:
        try:
            take_lock(file)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"another process trains in {run_dir}; wait until it has ended, or train into another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def is_marked(path: Path, identity: str) -> bool:
    """Whether what lies there was made from what this identity says."""
    try:
        return _mark_of(path).read_text(encoding="ascii") == _digest(identity)
    except (OSError, ValueError):  # none, or damaged: it is made again
        return False


def mark(path: Path, identity: str) -> None:
    """Says what a thing that is whole was made from."""
    write_text(_mark_of(path), _digest(identity))


def _mark_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()
