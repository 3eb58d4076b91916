"""Digests of what the stages and steps of a run read: the user's files, and the pictures and recordings that
the lines of data files name.

Knows the folders of a run's data. Knows nothing of what becomes of a digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from phirt_train.file_digests import FileDigests
from phirt_train.progress import Progress, Report, ignore
from phirt_train.step import StepConfig, step_of

STAGE = "data"


@dataclasses.dataclass(frozen=True, eq=False)
class DataDigests:
    """Of a run's data.

    Attributes:
        known: those of files.
        data: the folder in which the recipe's names start.
        source: the user's own folder.
        prepared: whether the recipe's own code has written `data`; its digest stands for what lies there.
        report: told how far it is.
    """

    known: FileDigests
    data: Path
    source: Path
    prepared: bool = False
    report: Report = ignore

    def file(self, name: str) -> str | None:
        """Of a file that the recipe names; None for what the run makes itself. Raises OSError."""
        path = self.data / name
        return self.known.of(path) if not self.prepared and self._is_there(name) else None

    def with_media(self, name: str) -> str | None:
        """Of a data file and the media that it names; None where all of them are made by the run itself.
        Raises OSError.
        """
        own, media = self.file(name), self._media(name) if self._is_there(name) else []
        if not media:
            return own

        def note(done: int, count: int) -> None:
            activity = f"reading the pictures and recordings of {name}"
            self.report(Progress(STAGE, done, count, "files", activity))

        facts = f"{own}\n{self.known.of_all(media, note)}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def beside(self, step: StepConfig) -> list[tuple[str, str]]:
        """Of the user's files that a step reads though the recipe does not name them one by one."""
        beside: Callable[[Path], Iterable[Path]] | None = getattr(step.options, "files_beside", None)
        paths = [] if beside is None else sorted(beside(self.source))
        return [(str(path), self.known.of(path)) for path in paths]

    def _is_there(self, name: str) -> bool:
        return step_of(name) is None and (self.data / name).is_file()

    def _media(self, name: str) -> list[Path]:
        """What the lines of a file name, but for what was prepared with it."""
        named, own = self.known.media_named(self.data / name), self.data.absolute()
        return [path for path in named if not (self.prepared and _plain(path).is_relative_to(own))]


def _plain(path: Path) -> Path:
    """From the root on, without steps upwards."""
    return Path(os.path.normpath(path.absolute()))
