"""The files of data packages: records of .jsonl and .jsonl.xz, and the media they name in a .tar."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError
from phirt_train.data.records import read_lines


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl or .jsonl.xz file.

    Raises:
        ConfigError: the file does not exist, or a line is no object.
    """
    for place, record in read_lines(path):
        if not isinstance(record, dict):
            raise ConfigError(f"{place} is no object")
        yield record


def read_media(folder: Path, name: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The records of `folder`/`name`.jsonl, each with the bytes of the file it names in `name`.tar.

    Raises:
        ConfigError: one of the two files does not exist, or the archive lacks a named file.
    """
    archive = folder / f"{name}.tar"
    if not archive.is_file():
        raise ConfigError(f"{archive.name} is needed, and {folder} holds no such file")
    with tarfile.open(archive) as tar:
        for record in read_records(folder / f"{name}.jsonl"):
            try:
                member = tar.extractfile(record["file"])
            except KeyError:
                member = None
            if member is None:
                raise ConfigError(f"{archive} holds no file {record.get('file')}, which {name}.jsonl names")
            yield record, member.read()
