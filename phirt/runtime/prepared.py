"""Graphs prepared for this machine, kept in the user's cache folder: weights in the order in which the CPU's
kernels read them.

Packing them takes most of the time in which a large graph opens, and memory of its own; packed weights on
disk are mapped instead. The layout belongs to one kind of CPU and one version of onnxruntime, so an entry is
found by both, by the bundle's manifest and by the graph. Entries cost disk space twice the graph's weights
and are removed after 30 days without use.

Knows folders, names, sizes and when an entry is worth its place. Knows nothing of onnxruntime: `session`
writes and opens what lies here. An entry appears whole, by a rename, or not at all; whatever goes wrong with
the folder costs only the time that an entry would have saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from phirt.bundle.manifest import GraphSpec, Manifest
from phirt.errors import PhirtError

VARIABLE = "PHIRT_CACHE"  # another folder, or OFF
OFF = "off"
MODEL_NAME, DATA_NAME = "model.onnx", "model.data"
_LISTING_NAME, _STAGING_PREFIX = "entry.json", ".staging-"
# Below this many bytes of weights a graph opens in a moment anyway.
_WORTHWHILE_BYTES = 64 << 20
# Raw and packed weights lie in an entry; some room is left to everybody else.
_SPACE_FACTOR = 3
_UNUSED_SECONDS, _ABANDONED_SECONDS = 30 * 86400, 86400


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
        listing = self.folder / _LISTING_NAME
        try:
            whole = bool(json.loads(listing.read_text(encoding="utf-8")) == _sizes(self.folder))
        except (OSError, ValueError, RecursionError):
            return False
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(listing)
        return whole

    def has_failed(self) -> bool:
        """Whether preparing it came to nothing within a day: it is not tried again at every start."""
        try:
            return time.time() - self._failure.stat().st_mtime < _ABANDONED_SECONDS
        except OSError:
            return False

    def discard(self) -> None:
        """Removes the entry, as far as the system lets it go."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path | None]:
        """A folder to fill with MODEL_NAME and DATA_NAME, which becomes the entry if the block ends well;
        None where there is no room for it. An entry that another process has finished meanwhile stays.
        """
        root = self.folder.parent
        if shutil.disk_usage(root).free < _SPACE_FACTOR * self.weights:
            yield None
            return
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{_STAGING_PREFIX}{os.getpid()}-", dir=root))
            yield folder
            sizes = _sizes(folder)
            (folder / _LISTING_NAME).write_text(json.dumps(sizes), encoding="utf-8")
            for path in folder.iterdir():
                _sync(path)
            if not self.is_complete():
                self.discard()
                folder.rename(self.folder)
            self._failure.unlink(missing_ok=True)
        except PhirtError:  # of the bundle, which may be whole the next time
            raise
        except Exception:
            with contextlib.suppress(OSError):
                self._failure.touch()
            raise
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _failure(self) -> Path:
        return self.folder.with_suffix(".failed")


def find_entry(manifest: Manifest, graph: GraphSpec, runtime: str) -> Entry | None:
    """Where the graph of a bundle has its entry, whether or not it is there yet; None where none is kept.

    `runtime` names what packs the weights, with its version.
    """
    weights = sum(manifest.files[name].size for name in graph.data)
    root = _root() if weights >= _WORTHWHILE_BYTES else None
    if root is None or not graph.data:
        return None
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_own(root):
            return None
        _remove_unused(root)
    except OSError:
        return None
    belongs_to = (manifest.fingerprint, graph.file, runtime, *_cpu())
    return Entry(root / hashlib.sha256("\0".join(belongs_to).encode()).hexdigest()[:32], weights)


def _is_own(root: Path) -> bool:
    """Whether nobody else can put a graph there to be opened."""
    if not hasattr(os, "getuid"):  # Windows: the user's own profile, or a folder that the user has named
        return True
    state = root.stat()
    return state.st_uid == os.getuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _root() -> Path | None:
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).absolute() / "prepacked" if named not in ("", OFF) else None
    from platformdirs import user_cache_path

    return user_cache_path("phirt", appauthor=False) / "prepacked"


def _cpu() -> tuple[str, ...]:
    """What tells kinds of CPUs apart: kernels, and with them layouts, are chosen by features."""
    described = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):  # Linux says more
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        for field in ("model name", "flags", "Features", "CPU part"):
            described += [line for line in lines if line.partition(":")[0].strip() == field][:1]
    return tuple(described)


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in (MODEL_NAME, DATA_NAME)}


def _remove_unused(root: Path) -> None:
    """Removes entries that were not used for long and what processes that ended have left half done."""
    now = time.time()
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            dated = path / _LISTING_NAME
            is_entry = dated.is_file() and not path.name.startswith(_STAGING_PREFIX)
            age = now - (dated if is_entry else path).stat().st_mtime
            if age > (_UNUSED_SECONDS if is_entry else _ABANDONED_SECONDS) or _is_orphan(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_orphan(name: str) -> bool:
    """Whether a staging folder's process has ended; False where that cannot be told."""
    owner = name.removeprefix(_STAGING_PREFIX).partition("-")[0]
    if not name.startswith(_STAGING_PREFIX) or not owner.isdecimal() or os.name == "nt":
        return False
    try:
        os.kill(int(owner), 0)  # sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's process, or no number of one
        pass
    return False


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
