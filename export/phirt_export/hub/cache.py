"""The hub's cache on this machine, in the layout that all of the hub's tools share.

Knows its folders (`models--owner--name` with `blobs`, `snapshots/COMMIT`, `refs`), how a file gets in (whole
and checked, or not at all), and where an interrupted one goes on. Opens no connection. Source of the layout:
"Understand caching" in the documentation of huggingface_hub.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from phirt_export.containers import INDEX_NAME, WEIGHTS_NAME, read_json
from phirt_export.hub import selection
from phirt_export.hub.errors import HubError
from phirt_export.hub.names import HubId
from phirt_export.hub.refusals import full, unwritable

_CHUNK = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGESTS = {40: "git", 64: "sha256"}


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size, and the digest under which the cache keeps it: the sha256 of a large
    file, git's own of a small one.
    """

    name: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        """Refuses what could lead out of the cache."""
        if self.size < 0 or len(self.digest) not in _DIGESTS or not re.fullmatch("[0-9a-f]+", self.digest):
            raise HubError(
                f"the hub describes {self.name[:80]!r} in a way that is not known; try again later"
            )

    def hasher(self) -> hashlib._Hash:
        """What turns the file's bytes into its digest."""
        if _DIGESTS[len(self.digest)] == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class Cache:
    """The part of the cache that belongs to one repository."""

    def __init__(self, root: Path, of: HubId) -> None:
        name = f"models--{of.repo.replace('/', '--')}"
        self._of, self._root, self.folder = of, root, root / name
        self._locks = root / ".locks" / name

    def missing(self, file: RemoteFile) -> int:
        """Bytes of the file that have not arrived yet."""
        if self.has(file):
            return 0
        with contextlib.suppress(OSError):
            have = self._partial(file).stat().st_size
            return file.size - have if have <= file.size else file.size
        return file.size

    def has(self, file: RemoteFile) -> bool:
        """Whether the file is there, whole."""
        return _size(self._blob(file)) == file.size

    def require_space(self, needed: int) -> None:
        """Raises HubError where the disk has not as many free bytes."""
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        if shutil.disk_usage(place).free < needed:
            raise full(self.folder, f"{needed / 1e6:,.1f} MB more")

    @contextlib.contextmanager
    def arriving(self, file: RemoteFile) -> Iterator[Arrival]:
        """The file as far as it has arrived, to be filled up; this process's alone until the block ends.

        Raises HubError where another process fetches it, or the disk is full or read only; what has arrived
        stays.
        """
        from filelock import FileLock, Timeout

        partial = self._partial(file)
        try:
            for folder in (partial.parent, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
            with (
                FileLock(self._locks / f"{file.digest}.lock", timeout=0),
                partial.open("r+b" if partial.exists() else "w+b", buffering=0) as stream,
            ):
                arrival = Arrival(file, stream)
                yield arrival
                if arrival.is_right():
                    partial.replace(self._blob(file))
        except Timeout as error:
            raise HubError(
                f"another process fetches {file.name} of {self._of.repo}; wait until it has finished"
            ) from error
        except OSError as error:
            raise unwritable(error, self.folder) from error

    def link(self, file: RemoteFile, commit: str) -> Path:
        """The file's place in the snapshot of a commit, which shows what has arrived. Raises HubError."""
        blob, place = self._blob(file), self.snapshot(commit) / file.name
        try:
            if _size(place) == file.size:
                return place
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            _show(blob, place)
        except OSError as error:
            raise unwritable(error, self.folder) from error
        return place

    def remember(self, commit: str) -> None:
        """From now on the id's revision means this commit, also offline. Raises HubError."""
        if self._of.revision == commit:
            return
        path = self.folder / "refs" / self._of.revision
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit, encoding="ascii")
        except OSError as error:
            raise unwritable(error, self.folder) from error

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files."""
        if not _COMMIT.fullmatch(commit):
            raise HubError(f"the hub names a commit {commit[:80]!r}, which is none; try again later")
        return self.folder / "snapshots" / commit

    def kept(self) -> Path | None:
        """The checkpoint that is kept for the id, or the file that it means; None where it is not whole."""
        commit = self._of.revision
        if not _COMMIT.fullmatch(commit):
            try:
                commit = (self.folder / "refs" / commit).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                return None
        if not _COMMIT.fullmatch(commit):
            return None
        folder = self.snapshot(commit)
        if self._of.file is not None:
            return folder / self._of.file if (folder / self._of.file).is_file() else None
        return folder if _is_whole(folder) else None

    def _blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.digest

    def _partial(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / f"{file.digest}.incomplete"


class Arrival:
    """A file on its way: how much of it is there, and whether that is what was sent."""

    def __init__(self, file: RemoteFile, stream: IO[bytes]) -> None:
        self.file, self.size = file, 0
        self._stream, self._hash = stream, file.hasher()
        while self.size <= file.size and (chunk := stream.read(_CHUNK)):
            self._hash.update(chunk)
            self.size += len(chunk)
        if self.size > file.size:
            self.restart()

    def add(self, chunk: bytes) -> None:
        """Appends what has come."""
        view = memoryview(chunk)
        while view:
            view = view[self._stream.write(view) :]
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Forgets what is there."""
        self._stream.seek(0)
        self._stream.truncate()
        self._hash, self.size = self.file.hasher(), 0

    def is_right(self) -> bool:
        """Whether the file has arrived, every byte as published."""
        return self.size == self.file.size and self._hash.hexdigest() == self.file.digest


def _show(blob: Path, place: Path) -> None:
    """Makes `place` the blob under another name; a copy where the system or the disk has no links."""
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:
        try:
            place.hardlink_to(blob)
        except OSError:
            shutil.copyfile(blob, place)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has what an export needs; other tools fetch files one by one."""
    if (folder / INDEX_NAME).is_file() and not (folder / WEIGHTS_NAME).is_file():
        placed = read_json(folder / INDEX_NAME, "fetch the checkpoint again").raw("weight_map")
        shards = set(placed.values()) if isinstance(placed, dict) else {""}
        there = all((folder / str(shard)).is_file() for shard in shards)
        return there and (folder / selection.CONFIG_NAME).is_file()
    pairs = (
        (selection.CONFIG_NAME, WEIGHTS_NAME),
        (
            selection.ADAPTER_CONFIG_NAME,
            selection.ADAPTER_WEIGHTS_NAME,
        ),
    )
    return any(all((folder / name).is_file() for name in pair) for pair in pairs)
