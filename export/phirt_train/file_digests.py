"""SHA-256 of data files and of the media that their lines name, and which files some code opens.

Knows files and lines. Knows nothing of recipes. A large file is read once: its digest is kept with its size
and its time, and holds as long as they do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from phirt.runtime.atomic_file import write_text
from phirt_train.data.records import media_named

Note = Callable[[int, int], None]
_NOTED = 64  # files from one report to the next
_watched: list[tuple[Path, set[Path]]] = []  # folders whose files are noted when they are opened
_hooked: list[bool] = []  # an audit hook stays for the life of the process


class FileDigests:
    """Digests of files, those of earlier starts among them.

    Args:
        kept: where they are kept. A damaged file is no loss: all are read again.
    """

    def __init__(self, kept: Path) -> None:
        self._kept, self._is_new = kept, False
        self._known: dict[str, Any] = {}
        self.read()

    def read(self) -> None:
        """Know what another process has found meanwhile, too."""
        self._known = _read(self._kept) | self._known

    def of(self, path: Path) -> str:
        """The SHA-256 of a file. Raises OSError."""
        facts, key = path.stat(), str(path.absolute())
        stamp = [facts.st_size, facts.st_mtime_ns]
        known = self._known.get(key)
        if isinstance(known, list) and known[:2] == stamp and isinstance(known[-1], str):
            return known[-1]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[key], self._is_new = [*stamp, digest], True
        return digest

    def media_named(self, path: Path) -> list[Path]:
        """The pictures and recordings that the lines of a file name; it is searched once. Raises OSError."""
        key = f"media named in {self.of(path)}"
        names = self._known.get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            names = media_named(path)
            self._known[key], self._is_new = names, True
        return [path.parent / name for name in names]

    def of_all(self, paths: Sequence[Path], note: Note = lambda _done, _all: None) -> str:
        """One SHA-256 over files, their names as given; one that cannot be read counts as missing.

        Args:
            note: told now and then how many are done, and of how many.
        """
        digest = hashlib.sha256()
        for number, path in enumerate(paths):
            if number % _NOTED == 0:
                note(number, len(paths))
            try:
                own = self.of(path)
            except (OSError, ValueError):  # a name may have bytes that no file's has
                own = ""
            digest.update(f"{path.name}\0{own}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def save(self) -> None:
        """Keep what was found."""
        if self._is_new:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._kept, json.dumps(self._known, indent=0))


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


@contextlib.contextmanager
def opened_files(folder: Path) -> Iterator[set[Path]]:
    """The files under a folder that Python code of this process opens in the block, in a set that fills. What
    libraries open by means of their own is not seen.
    """
    if not _hooked:
        sys.addaudithook(_note)
        _hooked.append(True)
    found: set[Path] = set()
    _watched.append((folder.absolute(), found))
    try:
        yield found
    finally:
        _watched.pop()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watched or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = Path(os.fsdecode(arguments[0])).absolute()
    for folder, found in _watched:
        if path.is_relative_to(folder):
            found.add(path)
