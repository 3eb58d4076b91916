"""The control groups around this process, as Linux shows them in files.

Knows where the files of a controller lie in both versions, and in containers. Knows nothing of what they say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path


def group_folders(root: Path, controller: str, mounts: Sequence[str]) -> Iterator[Path]:
    """The folders of the process's own group and of those around it, of both versions, the innermost first.
    `mounts` are the names under which version 1 may show the controller. Not all of them need be there.
    """
    with contextlib.suppress(OSError, ValueError):
        listed = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
        for line in listed.splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                yield from _upwards(root / "sys/fs/cgroup", path)
            elif controller in controllers.split(","):
                for name in mounts:
                    yield from _upwards(root / "sys/fs/cgroup" / name, path)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and those around it; in a container the path may be one of the host, which is not
    there, and the container's own group is the top.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])
