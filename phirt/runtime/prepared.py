"""Graphs prepared for this machine, kept in the user's cache folder: weights in the order in which the CPU's
kernels read them.

Packing them takes most of the time in which a large graph opens, and memory of its own; packed weights on
disk are mapped instead. The layout belongs to one kind of CPU and one version of onnxruntime, so an entry is
found by both, by the bundle's manifest and by the graph. Entries cost disk space twice the graph's weights
and are removed after 30 days without use.

Knows folders, names, sizes and when an entry is worth its place. Knows nothing of onnxruntime: `session`
writes and opens what lies here. An entry appears whole, by a rename, or not at all; whatever goes wrong with
the folder costs only the time that an entry would have saved, and is said once, in the log.

What is deleted here was written here: only in a folder that carries MARKER (or was empty, or holds nothing
but entries), only under names that this module makes, only folders with nothing but the files of an entry,
and what is merely old only where its listing tells the files' times as well. One process at a time prepares
or removes, by a lock on a file, which holds between containers too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phirt.bundle.manifest import Contents, GraphSpec
from phirt.errors import PhirtError
from phirt.runtime.atomic_file import sync_file, sync_folder, write_text
from phirt.runtime.cache_folder import OFF, VARIABLE, cache_folder
from phirt.runtime.own_folder import OwnFolder

MODEL_NAME, DATA_NAME = "model.onnx", "model.data"
# https://bford.info/cachedir/: says to backup programs what the folder is, and to this module whose it is.
MARKER = "CACHEDIR.TAG"
_MARKER_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Graphs that phirt has prepared for this machine. It removes them 30 days after their last use.\n"
)
_LISTING_NAME, _LOCK_NAME, _STAGING_PREFIX, _FAILED = "entry.json", ".lock", ".staging-", ".failed"
# In the order in which they go: without its listing an entry is none.
_FILES = (_LISTING_NAME, MODEL_NAME, DATA_NAME)
_KEY = re.compile(r"[0-9a-f]{32}")
_STAGING = re.compile(re.escape(_STAGING_PREFIX) + r"[0-9a-f]{32}-[a-z0-9_]{8}")
_MAX_LISTING_BYTES = 4096
# Below this many bytes of weights a graph opens in a moment anyway: 96 MB of them in 0.1 s more than an entry
# does, and the first start without writing 200 MB.
_WORTHWHILE_BYTES = 256 << 20
# Raw and packed weights lie in an entry; some room is left to everybody else.
_SPACE_FACTOR = 3
_UNUSED_SECONDS, _FAILED_SECONDS = 30 * 86400, 86400

_log = logging.getLogger("phirt.prepared")


class UnusableError(Exception):
    """Why nothing is kept in the folder; leaves this module in the log only."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """The place of one prepared graph; `weights` are the bytes of the graph's data in the bundle."""

    folder: Path
    weights: int

    @property
    def model(self) -> Path:
        """The graph to open."""
        return self.folder / MODEL_NAME

    @property
    def data(self) -> Path:
        """Its weights, raw and packed."""
        return self.folder / DATA_NAME

    def is_complete(self) -> bool:
        """Whether the entry is there with the sizes that it was written with; notes that it was used."""
        try:
            with OwnFolder(self.folder.parent) as root:
                complete = _is_complete(root, self.folder.name)
        except OSError:
            return False
        if complete:
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(self.folder / _LISTING_NAME)
        return complete

    def has_failed(self) -> bool:
        """Whether preparing it came to nothing within a day: it is not tried again at every start."""
        try:
            return time.time() - self._failure.lstat().st_mtime < _FAILED_SECONDS
        except OSError:
            return False

    def discard(self) -> None:
        """Removes the entry, as far as it holds nothing but its own files and no other process is at work."""
        with contextlib.suppress(UnusableError, OSError), _locked(self.folder.parent) as root:
            root.remove_folder(self.folder.name, _FILES)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path | None]:
        """A folder to fill with MODEL_NAME and DATA_NAME, which becomes the entry if the block ends well;
        None where there is no room for it, or its place is taken, or another process prepares something.
        """
        with contextlib.ExitStack() as stack:
            try:
                root = stack.enter_context(_locked(self.folder.parent))
                self._make_room(root)
            except (UnusableError, OSError) as error:
                _log.info("not preparing %s: %s", self.folder, error)
                yield None
                return
            yield from self._staged(root)

    def _make_room(self, root: OwnFolder) -> None:
        """Clears the entry's place. Raises UnusableError where that cannot be, or the disk is too full."""
        name, needed = self.folder.name, _SPACE_FACTOR * self.weights
        for left in filter(_STAGING.fullmatch, root.names()):  # by a process that has ended: the lock is ours
            root.remove_folder(left, _FILES)
        if _is_complete(root, name):
            raise UnusableError("another process has just prepared it")
        if root.state(name) is not None and not root.remove_folder(name, _FILES):
            raise UnusableError("its place holds something else")
        free = shutil.disk_usage(root.path).free
        if free < needed:
            _warn_once(
                f"graphs are not prepared for this machine: {root.path} has {free >> 20} MB free, "
                f"{needed >> 20} MB are needed; {_OTHER_PLACE}"
            )
            raise UnusableError("the disk is too full")

    def _staged(self, root: OwnFolder) -> Iterator[Path]:
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{_STAGING_PREFIX}{self.folder.name}-", dir=root.path))
            yield folder
            with root.inner(folder.name) as inner:
                listing = json.dumps(_listing(inner, self.folder.name))
            # Plainly: the folder appears whole, and whatever else a kill left in it would never be removed.
            (folder / _LISTING_NAME).write_text(listing, encoding="utf-8")
            for name in _FILES:
                sync_file(folder / name)
            folder.rename(self.folder)
            sync_folder(root.path)
            self._failure.unlink(missing_ok=True)
        except PhirtError:  # of the bundle, which may be whole the next time
            raise
        except Exception:
            with contextlib.suppress(OSError):
                self._failure.touch()
            raise
        finally:
            if folder is not None and root.state(folder.name) is not None:
                root.remove_folder(folder.name, _FILES)

    @property
    def _failure(self) -> Path:
        return self.folder.with_suffix(_FAILED)


def find_entry(manifest: Contents, graph: GraphSpec, runtime: str) -> Entry | None:
    """Where the graph of a bundle has its entry, whether or not it is there yet; None where none is kept.

    `runtime` names what packs the weights, with its version. Why none is kept is logged, each reason once.
    """
    weights = sum(manifest.files[name].size for name in graph.data)
    if not graph.data or weights < _WORTHWHILE_BYTES:
        return None
    try:
        root = _root()
        if root is None:
            return None
        if root.is_symlink():
            raise UnusableError(f"{root} is a link")
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with OwnFolder(root) as folder:
            _claim(folder)
        _remove_unused(root)
    except (UnusableError, OSError) as error:
        _warn_once(f"graphs are not prepared for this machine: {_reason(error)}; {_OTHER_PLACE}")
        return None
    belongs_to = (manifest.fingerprint, graph.file, runtime, *_cpu())
    return Entry(root / hashlib.sha256("\0".join(belongs_to).encode()).hexdigest()[:32], weights)


_OTHER_PLACE = f"{VARIABLE} names another folder, or is {OFF!r}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def _claim(root: OwnFolder) -> None:
    """Sees that the folder is phirt's own, and marks it where it is new. Raises UnusableError, OSError."""
    if not root.is_private():
        raise UnusableError(f"{root.path} belongs to another user, or others may write to it")
    marker = _MARKER_TEXT.encode()
    if root.state(MARKER) is not None:
        if root.read(MARKER, len(marker) + 1) != marker:
            raise UnusableError(f"the {MARKER} in {root.path} is not phirt's")
        return
    foreign = sorted(name for name in root.names() if not _was_written_here(root, name))
    if foreign:
        raise UnusableError(f"{root.path} holds what phirt has not written ({foreign[0]!r})")
    write_text(root.path / MARKER, _MARKER_TEXT)


def _was_written_here(root: OwnFolder, name: str) -> bool:
    """Whether it is a whole entry, or the note of a failure: for folders that had no marker yet."""
    if name == _LOCK_NAME or _is_failure(name):
        return _is_empty_file(root, name)
    return _is_complete(root, name)


def _is_empty_file(root: OwnFolder, name: str) -> bool:
    try:
        return root.own_file_state(name).st_size == 0
    except OSError:
        return False


def _is_failure(name: str) -> bool:
    return name.endswith(_FAILED) and _KEY.fullmatch(name.removesuffix(_FAILED)) is not None


def _is_complete(root: OwnFolder, name: str) -> bool:
    """Whether `name` is an entry: its files have the sizes that its listing says."""
    listings = _listings(root, name)
    if listings is None:
        return False
    said, true = listings
    if said == true:
        return True
    sizes = {file: size for file, (size, _) in true["files"].items()}
    files = said.get("files")
    if files is None:  # as listed at first: sizes alone
        return said == sizes
    return isinstance(files, dict) and sizes == {
        file: of[0] for file, of in files.items() if isinstance(of, list) and of
    }


def _is_provably_own(root: OwnFolder, name: str) -> bool:
    """Whether the listing of an entry knows its name, and the sizes and times of its files."""
    listings = _listings(root, name)
    return listings is not None and listings[0] == listings[1]


def _listings(root: OwnFolder, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What an entry says of itself, and what is so; None where it is no entry at all."""
    if not _KEY.fullmatch(name):
        return None
    try:
        with root.inner(name) as folder:
            said = json.loads(folder.read(_LISTING_NAME, _MAX_LISTING_BYTES))
            true = _listing(folder, name)
    except (OSError, ValueError, RecursionError):
        return None
    return (said, true) if isinstance(said, dict) else None


def _listing(folder: OwnFolder, key: str) -> dict[str, Any]:
    """What an entry says of itself: [size, time of the last change in ns] of each file. Raises OSError."""
    states = {name: folder.own_file_state(name) for name in (MODEL_NAME, DATA_NAME)}
    return {
        "entry": key,
        "files": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
    }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[OwnFolder]:
    """The cache folder, with nobody else preparing or removing. Raises UnusableError where somebody does."""
    from filelock import FileLock  # 40 ms, for large graphs only

    with OwnFolder(path) as root:
        if root.state(_LOCK_NAME) is not None and not _is_empty_file(root, _LOCK_NAME):
            raise UnusableError(f"{path / _LOCK_NAME} is no lock file of phirt's")
        lock = FileLock(path / _LOCK_NAME, timeout=0)
        try:
            lock.acquire()
        except TimeoutError as error:  # of the library's own kind
            raise UnusableError("another process is at work there") from error
        except NotImplementedError as error:
            raise UnusableError("its file system has no locks") from error
        try:
            yield root
        finally:
            lock.release()


def _root() -> Path | None:
    """The folder of all entries; None where the user wants none. Raises UnusableError where none is known."""
    try:
        return cache_folder("prepacked")
    except RuntimeError as error:
        raise UnusableError(str(error)) from error


def _cpu() -> tuple[str, ...]:
    """What tells kinds of CPUs apart: kernels, and with them layouts, are chosen by features."""
    described = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):  # Linux says more
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        for field in ("model name", "flags", "Features", "CPU part"):
            described += [line for line in lines if line.partition(":")[0].strip() == field][:1]
    return tuple(described)


def _remove_unused(path: Path) -> None:
    """Removes entries that were not used for long, old notes of failures, and what processes that have ended
    left half done.
    """
    try:
        with _locked(path) as root:
            for name in root.names():
                if _is_failure(name):
                    if _is_empty_file(root, name) and _age(root.state(name)) > _FAILED_SECONDS:
                        root.unlink(name)
                elif _STAGING.fullmatch(name) or (
                    _is_provably_own(root, name) and _unused_for(root, name) > _UNUSED_SECONDS
                ):
                    root.remove_folder(name, _FILES)
    except (UnusableError, OSError) as error:  # another process is at work, or the cache may only be read
        _log.debug("nothing is removed from %s: %s", path, _reason(error))


def _unused_for(root: OwnFolder, name: str) -> float:
    with root.inner(name) as folder:
        return _age(folder.state(_LISTING_NAME))


def _age(state: os.stat_result | None) -> float:
    return 0.0 if state is None else time.time() - state.st_mtime
