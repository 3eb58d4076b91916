"""Reading what a person types: one line at a time, with editing and completion where the system has readline.

Knows the terminal's input and how a path may be written there. Does not know what the lines mean.
"""

from __future__ import annotations

import glob
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .output import Output


class LineReader:
    """Reads lines from stdin. Nothing that was typed is ever written to disk.

    `commands` are the words offered by the Tab key at the start of a line; those in `with_path` complete file
    names after it.
    """

    def __init__(self, out: Output, commands: Sequence[str], with_path: Sequence[str]) -> None:
        self._out = out
        self._editable = sys.stdin.isatty() and sys.stdout.isatty() and _enable_editing(commands, with_path)

    def read(self, prompt: str) -> str:
        """The next line without its newline. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C."""
        if self._editable:
            return input(prompt)
        # Without readline the prompt goes to stderr: stdout carries only answers.
        self._out.prompt(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


def _enable_editing(commands: Sequence[str], with_path: Sequence[str]) -> bool:
    try:
        import readline
    except ImportError:
        return False
    readline.set_completer_delims("")
    readline.set_completer(_completer(lambda line: completions(line, commands, with_path)))
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    return True


def _completer(find: Callable[[str], list[str]]) -> Callable[[str, int], str | None]:
    found: list[str] = []

    def complete(line: str, state: int) -> str | None:
        nonlocal found
        if state == 0:
            found = find(line)
        return found[state] if state < len(found) else None

    return complete


def completions(line: str, commands: Sequence[str], with_path: Sequence[str]) -> list[str]:
    """The lines that could follow from this beginning: commands, or files after one that takes a file."""
    command, space, start = line.partition(" ")
    if not space:
        takes = set(with_path)
        return [f"{word} " if word in takes else word for word in commands if word.startswith(line)]
    if command not in with_path:
        return []
    head, tail = os.path.split(start)
    folder = _home(head) if head else Path()
    shown = head if not head or head.endswith(os.sep) else head + os.sep
    try:
        found = sorted(folder.glob(glob.escape(tail) + "*"))
    except OSError:
        return []
    return [f"{command} {shown}{path.name}{os.sep if path.is_dir() else ''}" for path in found]


def typed_path(text: str) -> Path:
    """The file that a typed argument names: with spaces, quotes, backslashes or `~`, as typed or as dropped.

    A name that exists as it stands is taken as it stands; otherwise quotes and backslashes are read as a
    shell would.
    """
    text = text.strip()
    plain = _home(text)
    if _exists(plain):
        return plain
    if os.name == "nt":  # backslashes separate folders there
        return _home(text.strip('"'))
    try:
        words = shlex.split(text)
    except ValueError:
        return plain
    return _home(words[0]) if len(words) == 1 else plain


def _home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~someone who has no home here
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or one with a zero character
        return False
