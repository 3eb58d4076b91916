"""Which way an answer is shown: as it is in a file or a pipe, laid out as Markdown on a terminal.

Knows streams, terminals and the environment's wishes. Does not know what an answer says.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Protocol, TextIO

from .controls import printable

_DEFAULT_COLUMNS = 80


class AnswerDisplay(Protocol):
    """Shows one answer as it comes."""

    def write(self, piece: str) -> None:
        """Takes the next piece."""

    def break_line(self) -> None:
        """Begins a new line where the answer has begun one, before a notice comes between."""

    def finish(self) -> None:
        """Writes what is left and ends the last line."""


class RawDisplay:
    """The answer as the model wrote it, and a newline at its end. Notices go elsewhere, or fit anywhere."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._in_line = False

    def write(self, piece: str) -> None:
        """Writes the piece at once."""
        if piece:
            self._write(piece)
            self._in_line = not piece.endswith("\n")

    def break_line(self) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Ends the last line."""
        if self._in_line:
            self._write("\n")
            self._in_line = False


class PlainDisplay(RawDisplay):
    """The same on a terminal, where a notice would come between."""

    def write(self, piece: str) -> None:
        """Writes the piece at once, without what the terminal could take as a command."""
        super().write(printable(piece))

    def break_line(self) -> None:
        """Begins a new line where the answer has begun one."""
        self.finish()


class NoDisplay:
    """Shows nothing: for an answer that is wanted as an object."""

    def write(self, piece: str) -> None:
        """Does nothing."""

    def break_line(self) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""


def answer_display(stdout: TextIO, write: Callable[[str], None], *, markdown: bool = True) -> AnswerDisplay:
    """What suits `stdout`, which `write` writes to as it is: Markdown where a terminal can show it."""
    if not stdout.isatty():
        return RawDisplay(write)
    if not markdown or os.environ.get("TERM") == "dumb" or _lacks_escape_sequences():
        return PlainDisplay(write)
    from .inline import PLAIN, Theme  # after the first answer's wait, not before it
    from .markdown import MarkdownDisplay

    theme = PLAIN if os.environ.get("NO_COLOR") else Theme()
    return MarkdownDisplay(write, lambda: columns(stdout), theme)


def columns(stream: IO[str]) -> int:
    """The terminal's present width; where it does not tell, what COLUMNS says, or 80."""
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        width = 0
    if width < 1:
        said = os.environ.get("COLUMNS", "")
        width = int(said) if said.isdecimal() and 0 < int(said) < 10_000 else _DEFAULT_COLUMNS
    return width


def _lacks_escape_sequences() -> bool:
    """Consoles of old Windows."""
    if os.name != "nt":
        return False
    from rich.console import detect_legacy_windows

    return detect_legacy_windows()
