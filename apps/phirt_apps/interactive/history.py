"""What was typed earlier, for the up arrow: in memory, or also in a file where a person has asked for it.

Knows prompt_toolkit's histories and files. Does not know what was typed.

The file is the person's alone (mode 0600), and holds the last entries only. When it cannot be used that is
said once, and the history stays in memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import platformdirs
from prompt_toolkit.history import History, InMemoryHistory

_KEPT = 1000  # entries; the file is cut to this number when it holds twice as many
_LONGEST = 20_000  # characters of an entry that is written


def open_history(notice: Callable[[str], None]) -> History:
    """The history in the folder of this system for what programs remember; in memory where there is none."""
    try:
        path = platformdirs.user_state_path("phirt", appauthor=False) / "history"
    except (OSError, RuntimeError):  # no HOME, and no entry among the system's users
        path = Path("history")
    if not path.is_absolute():
        notice("the history is not kept: this user has no folder for it")
        return InMemoryHistory()
    return FileHistory(path, notice)


class FileHistory(History):
    """A history in a file. `notice` is called with one line when the file cannot be used."""

    def __init__(self, path: Path, notice: Callable[[str], None]) -> None:
        super().__init__()
        self._path = path
        self._notice = notice
        self._usable = True

    def load_history_strings(self) -> Iterable[str]:
        """The entries of the file, the latest first."""
        try:
            if not self._path.exists():
                return []
            text = self._path.read_text(encoding="utf-8", errors="replace")
            entries = [_decoded(line) for line in text.split("\n") if line]
            if len(entries) > 2 * _KEPT:
                entries = entries[-_KEPT:]
                self._write("".join(_encoded(entry) for entry in entries), os.O_TRUNC)
        except OSError as error:
            self._give_up(error)
            return []
        return list(reversed(entries))

    def store_string(self, string: str) -> None:
        """Adds an entry to the file."""
        if not self._usable or len(string) > _LONGEST:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(_encoded(string), os.O_APPEND)
        except OSError as error:
            self._give_up(error)

    def _write(self, text: str, how: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | how | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(self._path, flags, 0o600)
        with open(handle, "wb") as file:  # noqa: PTH123 - an open descriptor
            if os.name == "posix" and stat.S_IMODE(os.fstat(handle).st_mode) != 0o600:
                os.fchmod(handle, 0o600)
            file.write(text.encode("utf-8", "replace"))

    def _give_up(self, error: OSError) -> None:
        if self._usable:
            self._usable = False
            reason = error.strerror or str(error)
            self._notice(f"the history is not kept: {self._path}: {reason}")


def _encoded(entry: str) -> str:
    """One line for an entry."""
    return entry.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") + "\n"


def _decoded(line: str) -> str:
    plain = {"n": "\n", "r": "\r"}
    parts = iter(line)
    return "".join(
        plain.get(second := next(parts, ""), second) if character == "\\" else character
        for character in parts
    )
