"""Program code to learn from: Python's own standard library, as it lies on this machine (PSF licence).

Knows where it lies, and cuts it into modules of one size. Which version it is depends on the machine; the
digest of what is read stands in the name of the file's records.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from phirt.errors import ConfigError

MAX_CHARACTERS = 12_000
_HELD_OUT = 10  # every tenth module


def library_modules(folder: Path | None = None) -> list[Path]:
    """Modules of the standard library's own level, by name."""
    place = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    found = sorted(path for path in place.glob("*.py") if not path.name.startswith("_"))
    if not found:
        raise ConfigError(f"{place} holds no Python modules; install Python with its standard library")
    return found


def code_pages(modules: list[Path], count: int, held_out: bool) -> Iterator[str]:
    """At most `count` pieces of modules, cut where a line begins; those held out are of other modules."""
    left = count
    for index, path in enumerate(modules):
        if (index % _HELD_OUT == _HELD_OUT - 1) != held_out:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for piece in _pieces(text):
            if left == 0:
                return
            left -= 1
            yield f"# {path.name}\n{piece}"


def _pieces(text: str) -> Iterator[str]:
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > MAX_CHARACTERS:
            yield piece
            piece = ""
        piece += line
    if piece.strip():
        yield piece
