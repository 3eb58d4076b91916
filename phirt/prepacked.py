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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from phirt.manifest import GraphSpec, Manifest

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
        try:
            listed = json.loads((self.folder / _LISTING_NAME).read_text(encoding="utf-8"))
            whole = bool(listed == _sizes(self.folder))
            if whole:
                os.utime(self.folder / _LISTING_NAME)
        except (OSError, ValueError):
            return False
        return whole

    def discard(self) -> None:
        """Removes the entry, as far as the system lets it go."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path | None]:
        """A folder to fill with MODEL_NAME and DATA_NAME, which becomes the entry if the block ends well;
        None where there is no room for it.
        """
        root = self.folder.parent
        _remove_unused(root)
        if shutil.disk_usage(root).free < _SPACE_FACTOR * self.weights:
            yield None
            return
        folder = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=root))
        try:
            yield folder
            sizes = _sizes(folder)
            (folder / _LISTING_NAME).write_text(json.dumps(sizes), encoding="utf-8")
            for path in folder.iterdir():
                _sync(path)
            self.discard()
            folder.rename(self.folder)
        except Exception:
            self._failure.touch()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def has_failed(self) -> bool:
        """Whether preparing it came to nothing within a day: it is not tried again at every start."""
        try:
            return time.time() - self._failure.stat().st_mtime < _ABANDONED_SECONDS
        except OSError:
            return False

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
    except OSError:
        return None
    belongs_to = (manifest.fingerprint, graph.file, runtime, *_cpu())
    entry = Entry(root / hashlib.sha256("\0".join(belongs_to).encode()).hexdigest()[:32], weights)
    return None if entry.has_failed else entry


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
    now = time.time()
    for path in root.iterdir():
        is_entry = path.is_dir() and not path.name.startswith(_STAGING_PREFIX)
        limit = _UNUSED_SECONDS if is_entry else _ABANDONED_SECONDS
        with contextlib.suppress(OSError):
            if now - (path / _LISTING_NAME if is_entry else path).stat().st_mtime > limit:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
