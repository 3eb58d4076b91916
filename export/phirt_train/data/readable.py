"""Records with one picture or recording each, of which those that cannot be read are left out and counted.

Knows records, files and what is left out. Knows nothing of pixels or samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from phirt.errors import ConfigError, MediaError
from phirt_train.context import TrainingContext
from phirt_train.data.records import read_records

T = TypeVar("T")
R = TypeVar("R")
_TRIES = 16  # broken items one after another


def read_usable(
    name: str,
    cls: type[T],
    context: TrainingContext,
    media: Callable[[T], str],
    check: Callable[[Path, T], object],
) -> list[tuple[Path, T]]:
    """The records of a file, each with the path of its medium.

    Args:
        media: what a record calls its medium.
        check: raises MediaError or ConfigError for what cannot be used.

    Raises:
        ConfigError: the file has none, or too many that cannot be used.
    """
    path, found, rows = context.path(name), [], 0
    context.note(f"reading {name}")
    context.rejects.files.pop(name, None)

    def reject(cause: str) -> None:
        nonlocal rows
        rows += 1
        context.rejects.add(name, cause)

    for place, record in read_records(path, cls, reject):
        file = path.parent / media(record)
        try:
            if not file.is_file():
                raise ConfigError(f"{media(record)} is no file in {path.parent}; correct the path")
            check(file, record)
        except (ConfigError, MediaError) as error:
            reject(f"{place}: {error}")
        else:
            rows += 1
            found.append((file, record))
    if not rows:
        raise ConfigError(f"{path} holds no records; leave it out, or fill it")
    context.rejects.check(name, rows)
    return found


def take_readable(size: int, place: int, open_item: Callable[[int], R]) -> tuple[int, R, list[str]]:
    """The item at a place of a source, or, where it is broken, the next one that is not.

    Returns:
        Its place, what `open_item` makes of it, and what is wrong with those before it.
    """
    wrong: list[str] = []
    for more in range(min(_TRIES, size)):
        taken = (place + more) % size
        try:
            return taken, open_item(taken), wrong
        except MediaError as error:
            wrong.append(str(error))
    raise ConfigError(f"{wrong[0]}; and so it is with the {len(wrong) - 1} behind it; correct the media")
