"""Where the index of a folder lies: in the user's cache, for this user alone, one process at a time writing.

Knows the cache folder. Does not know what is in an index. An index holds the text of the documents, so it is
readable for its user only, and goes when another index is used, once it was not for 30 days.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from phirt.errors import ConfigError
from phirt.runtime.cache_folder import OFF, VARIABLE, cache_folder
from phirt.runtime.own_folder import OwnFolder

_UNUSED_SECONDS = 30 * 24 * 3600
_NAME = re.compile(r"[0-9a-f]{32}\.sqlite(-journal|\.lock)?")


def index_place(root: Path) -> Path | None:
    """The file for the index of the folder `root`; None where the user wants no cache. What has not been used
    for long is removed. Raises ConfigError, where an index cannot be kept safely.
    """
    folder = _folder()
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with OwnFolder(folder) as own:
            if not own.is_private():
                raise ConfigError(f"others may write to {folder}")
            _remove_unused(own)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror or error}") from error
    key = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    place = folder / f"{key}.sqlite"
    with contextlib.suppress(FileNotFoundError):  # not there yet
        os.utime(place)
    return place


@contextlib.contextmanager
def locked(place: Path | None, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keeps the index for this process until the block ends; `on_wait` is called before another one is waited
    for. Nobody else can have what is in memory. Raises ConfigError.
    """
    if place is None:
        yield
        return
    from filelock import FileLock, Timeout  # 40 ms, for this only

    lock = FileLock(place.with_name(f"{place.name}.lock"), mode=0o600)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"the index in {place.parent} cannot be locked: {getattr(error, 'strerror', None) or error}; "
            f"{VARIABLE} names another folder, or is {OFF!r}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def discard(place: Path) -> None:
    """Removes an index that cannot be used. Raises OSError."""
    with OwnFolder(place.parent) as own:
        for name in (place.name, f"{place.name}-journal"):
            if own.state(name) is not None:
                own.own_file_state(name)
                own.unlink(name)


def _folder() -> Path | None:
    try:
        return cache_folder("documents")
    except RuntimeError as error:
        raise ConfigError(str(error)) from error


def _remove_unused(own: OwnFolder) -> None:
    old = time.time() - _UNUSED_SECONDS
    for name in own.names():
        if not _NAME.fullmatch(name):
            continue
        # Gone meanwhile, in use on Windows, or not this user's: left alone.
        with contextlib.suppress(OSError):
            if own.own_file_state(name).st_mtime < old:
                own.unlink(name)
