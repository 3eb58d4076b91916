"""Rows that cannot be learnt from: counted, named and left out, as long as they are few.

Knows files, counts and what was wrong first. Knows nothing of what rows hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from phirt.errors import ConfigError

MOST = 0.01  # of a file's rows


@dataclasses.dataclass
class Rejected:
    """What is left out of one file: how many of how many rows, and what is wrong with the first."""

    rows: int = 0
    of: int = 0
    first: str = ""


class Broken(NamedTuple):
    """What is wrong with items of a file that a step would have taken."""

    name: str
    causes: Sequence[str]


class Rejects:
    """What a stage leaves out, by file."""

    def __init__(self) -> None:
        self.files: dict[str, Rejected] = {}
        self._seen: set[str] = set()

    def add(self, name: str, cause: str, rows: int = 1) -> None:
        """Rows of a file are left out for this cause."""
        file = self.files.setdefault(name, Rejected())
        file.first = file.first or cause
        file.rows += rows

    def check(self, name: str, rows: int) -> None:
        """Raises ConfigError, with the first cause, where too many of a file's rows are left out."""
        file = self.files.get(name)
        if file is None:
            return
        file.of = rows
        if file.rows > MOST * rows:
            more = "" if file.rows == 1 else f" (and {file.rows - 1} more of {rows} rows of {name})"
            raise ConfigError(f"{file.first}{more}; at most 1 % of a file's rows may be wrong")

    def count(self, broken: Broken, rows: int) -> None:
        """Add what a step has come upon, once for each cause. Raises ConfigError where that is too much."""
        new = [cause for cause in broken.causes if cause not in self._seen]
        self._seen.update(new)
        for cause in new:
            self.add(broken.name, f"{broken.name}: {cause}")
        if new:
            self.check(broken.name, rows)

    def notice(self) -> str:
        """One line that says what is left out; empty where nothing is."""
        parts = [f"{file.rows} of {file.of or '?'} rows of {name} ({file.first})"
                 for name, file in self.files.items()]  # fmt: skip
        return f"left out: {'; '.join(parts)}" if parts else ""
