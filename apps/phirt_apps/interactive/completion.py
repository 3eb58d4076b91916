"""What the Tab key offers: commands, and files where a path is expected or begun.

Knows how a line begins and what lies in folders. Does not know terminals.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LAST_PATH = re.compile(r"(?:^|(?<=[\s'\"]))(?:~|\.{1,2})?/(?:\\.|[^\s\\'\"])*$")
_SPECIAL = re.compile(r"([\s'\"\\()&;|<>*?\[\]{}$`!#])")


@dataclass(frozen=True)
class Completion:
    """`text` takes the place of the last `replaced` characters; `label` is what a list of them shows."""

    text: str
    replaced: int
    label: str


def completions(line: str, commands: Sequence[str], with_path: Sequence[str]) -> list[Completion]:
    """How the line could go on: with a command, or with a file behind one of `with_path` or in a message."""
    command, space, start = line.partition(" ")
    if not space and line.startswith("/"):
        found = [word for word in commands if word.startswith(line)]
        if found:
            return [Completion(f"{word} " if word in with_path else word, len(line), word) for word in found]
    if space and command in with_path:
        return [Completion(name, len(start), label) for name, label in _files(start)]
    path = _LAST_PATH.search(line)
    if path is None:
        return []
    typed = path[0]
    plain = re.sub(r"\\(.)", r"\1", typed)
    return [Completion(_SPECIAL.sub(r"\\\1", name), len(typed), label) for name, label in _files(plain)]


def _files(start: str) -> list[tuple[str, str]]:
    """The files whose path begins so, spelled as it was begun, each with its name alone."""
    head, tail = os.path.split(start)
    try:
        folder = Path(head).expanduser() if head else Path()
        found = sorted(folder.glob(glob.escape(tail) + "*"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: ~someone who has no home here
        return []
    if not tail.startswith("."):
        found = [path for path in found if not path.name.startswith(".")]
    shown = head if not head or head.endswith(os.sep) else head + os.sep
    names = [path.name + (os.sep if path.is_dir() else "") for path in found]
    return [(shown + name, name) for name in names]
