"""`~` in a path that a shell has not expanded: from a file, a variable, or a line typed to phirt.

Knows paths. Knows nothing of what lies there.
"""

from __future__ import annotations

from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """The path with `~` in front expanded, or as it is where that user has no home here, or can have none."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # ValueError: a zero character in the name
        return Path(path)
