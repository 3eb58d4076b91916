"""How long a bundle takes to open in a fresh process, with its files in the page cache and without.

Knows processes, files, the page cache, and that large graphs are prepared for a machine once. Knows nothing
of what is computed. A process of its own opens the bundle:

    python -m phirt_apps.bench.opening FOLDER THREADS

prints one JSON object; THREADS 0 leaves the number to onnxruntime.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from phirt.bundle.manifest import Manifest
from phirt.errors import BundleError, PhirtError
from phirt.runtime.prepared import find_entry

from .spread import Spread

_OPEN_SECONDS = 1800
_SAMPLES = 256  # of a file's pages, to see whether they are still in the page cache
_MAY_STAY = 0.02  # of the samples: a file system may keep a few pages, such as the last one


@dataclasses.dataclass(frozen=True)
class Opening:
    """Seconds from a started interpreter to an engine that can run.

    `imports` is importing the runtime, the others are `phirt.load` with an engine: `preparing` the start that
    prepared a graph for this machine (None where that was done before, or is not done), `cold` and `warm`
    later ones. `cold` is None where `why_not_cold` says why. `private_bytes` is the memory that is no page of
    a mapped file once the engine is there, None where the system does not tell.
    """

    preparing: float | None
    cold: float | None
    why_not_cold: str | None
    warm: Spread
    imports: Spread
    private_bytes: int | None


def measure(manifest: Manifest, threads: int | None, repeats: int) -> Opening:
    """Opens the bundle once to have it prepared, once cold where that can be had, and `repeats` times warm.

    No process may have it open: pages that are mapped stay in the page cache. Raises PhirtError.
    """
    first = _open(manifest.folder, threads)
    why_not = drop_from_cache(_files(manifest))
    cold = _open(manifest.folder, threads)
    takes = [_open(manifest.folder, threads) for _ in range(repeats)]
    return Opening(
        preparing=first["load"] if first["prepared"] else None,
        cold=cold["load"] if why_not is None else None,
        why_not_cold=why_not,
        warm=Spread(tuple(take["load"] for take in takes)),
        imports=Spread(tuple(take["imports"] for take in takes)),
        private_bytes=takes[-1]["private"],
    )


def _files(manifest: Manifest) -> list[Path]:
    """The bundle's files, and those of its graphs that lie prepared."""
    import phirt.runtime.session  # noqa: F401 - it turns telemetry off while onnxruntime is imported
    import onnxruntime as ort  # isort: skip

    files = [manifest.path(name) for name in manifest.files]
    for graph in manifest.graphs.values():
        entry = find_entry(manifest, graph, f"onnxruntime {ort.__version__}")
        if entry is not None and entry.is_complete():
            files += entry.folder.iterdir()
    return files


def drop_from_cache(paths: list[Path]) -> str | None:
    """Asks the system to drop the files' pages, and looks whether it did; returns why it did not, or None.

    What lies in the cache of a disk, or of the host of a virtual machine, cannot be dropped nor seen.
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "preadv") or not hasattr(os, "RWF_NOWAIT"):
        return "this system cannot drop files from the page cache"
    looked, kept = 0, 0
    try:
        for path in paths:
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)  # only clean pages are dropped
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                size = os.fstat(file).st_size
                at_pages = (
                    {size * part // _SAMPLES // 4096 * 4096 for part in range(_SAMPLES)} if size else set()
                )
                looked += len(at_pages)
                kept += sum(_in_cache(file, at) for at in at_pages)
            finally:
                os.close(file)
    except OSError as error:
        return f"the page cache could not be dropped: {error.strerror}"
    if kept > _MAY_STAY * looked:
        return f"the system kept {kept / looked:.0%} of the files in the page cache"
    return None


def _in_cache(file: int, at: int) -> bool:
    try:
        return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except BlockingIOError:  # it would have to be read from the disk
        return False


def _open(folder: Path, threads: int | None) -> dict[str, Any]:
    # -P: whatever lies in the current folder is not imported.
    command = [sys.executable, "-P", "-m", __name__, str(folder), str(threads or 0)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_OPEN_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise PhirtError(f"a process that opens {folder} could not run: {error}") from error
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise BundleError(f"{folder} could not be opened in a process of its own: {' '.join(last)}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def private_bytes() -> int | None:
    """This process's memory now that is no page of a mapped file; None where it is not told (not Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)


def _main() -> None:
    start = time.perf_counter()
    import phirt.model

    imported = time.perf_counter()
    prepared: list[str] = []
    model = phirt.load(
        Path(sys.argv[1]),
        threads=int(sys.argv[2]) or None,
        on_prepare=lambda graph, weights: prepared.append(graph),
    )
    engine = model.generator.new_engine()
    ready = time.perf_counter()
    assert engine.length == 0
    figures = {
        "imports": imported - start,
        "load": ready - imported,
        "private": private_bytes(),
        "prepared": bool(prepared),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    _main()
