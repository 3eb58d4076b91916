"""Reading what a person types, one message at a time.

Knows streams and triple quotes. `editor` reads from terminals that can do more; both are a `Reader`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from .entry import is_open


class Reader(Protocol):
    """Where messages come from: a terminal, or a list in a test."""

    def read(self, prompt: str) -> str:
        """The next message; EOFError at the end, KeyboardInterrupt on Ctrl-C."""

    def poll(self) -> None:
        """Takes in what is typed while an answer is shown; called now and then."""

    def hold(self) -> None:
        """What was typed meanwhile shall not be sent, but stand at the next prompt to be thought over."""


class LineReader:
    """Reads lines from stdin; between triple quotes, several. `say` writes the prompt, which is no answer."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def read(self, prompt: str) -> str:
        """The next line, or lines, without the last newline."""
        self._say(prompt)
        text = _line()
        while is_open(text):
            self._say("... ")
            text += "\n" + _line()
        return text

    def poll(self) -> None:
        """Leaves the lines to the terminal, which shows them as they are typed."""

    def hold(self) -> None:
        """Leaves them there too."""


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
