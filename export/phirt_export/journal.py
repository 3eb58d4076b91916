"""What an interrupted export has safely on the disk: a line for each finished piece of a data file.

Knows lines, their order and how to make them durable. Knows nothing of weights, and does not open the data
files: whoever continues one checks its bytes against the digests here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MAX_LINE_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Entry:
    """One piece of a data file that is on the disk.

    Attributes:
        file: name of the data file.
        number: which piece of that file it is, from 0.
        key: what was written, in the words of the writer.
        lengths: bytes of its extents, in order.
        stop: where the file goes on after it.
        sha256: digest of all bytes of the file before `stop`.
        note: figures about the piece that would otherwise have to be computed again.
    """

    file: str
    number: int
    key: str
    lengths: tuple[int, ...]
    stop: int
    sha256: str
    note: tuple[float, ...]

    @classmethod
    def from_line(cls, line: bytes) -> Entry | None:
        """The entry of a line of the journal; None for what this class has not written."""
        try:
            raw = json.loads(line)
            entry = cls(**{**raw, "lengths": tuple(raw["lengths"]), "note": tuple(raw["note"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        numbers = (entry.number, entry.stop, *entry.lengths)
        texts = (entry.file, entry.key, entry.sha256)
        sane = all(type(n) is int and n >= 0 for n in numbers) and all(isinstance(t, str) for t in texts)
        return entry if sane and all(isinstance(x, int | float) for x in entry.note) else None


class Journal:
    """The journal at `path` for one piece of work; what another piece of work left there is dropped.

    `identity` names the work: everything that its result depends on.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._header = _line({"identity": identity})
        self._entries: dict[str, list[Entry]] = {}
        end = self._read(path)
        self._file = path.open("r+b" if end else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._write([self._header])

    def entries(self, file: str) -> list[Entry]:
        """The finished pieces of a data file, in order."""
        return list(self._entries.get(file, ()))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to continue."""
        return not any(self._entries.values())

    def add(self, entries: Iterable[Entry]) -> None:
        """Record pieces whose bytes are on the disk; they are recorded durably when this returns."""
        entries = list(entries)
        self._write([_line(dataclasses.asdict(entry)) for entry in entries])
        for entry in entries:
            self._place(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, path: Path) -> int:
        """Take over the entries of an earlier run; returns how many bytes of the file are good."""
        try:
            with path.open("rb") as file:
                if file.readline(_MAX_LINE_BYTES) != self._header:
                    return 0
                end = len(self._header)
                while (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                    entry = Entry.from_line(line)
                    if entry is None or entry.number > len(self._entries.get(entry.file, ())):
                        break
                    self._place(entry)
                    end += len(line)
                return end
        except FileNotFoundError:
            return 0

    def _place(self, entry: Entry) -> None:
        """A piece that was written again replaces itself and all that followed it."""
        pieces = self._entries.setdefault(entry.file, [])
        del pieces[entry.number :]
        pieces.append(entry)

    def _write(self, lines: list[bytes]) -> None:
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"
