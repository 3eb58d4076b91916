"""Records of the data package's .jsonl and .jsonl.xz files, the media they name, and the strings in them."""

from __future__ import annotations

import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError


def strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl or .jsonl.xz file.

    Raises:
        ConfigError: the file does not exist.
    """
    if not path.is_file():
        raise ConfigError(f"the recipe names {path.name}, which {path.parent} does not hold")
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_media(folder: Path, name: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The records of `folder`/`name`.jsonl, each with the bytes of the file it names in `name`.tar.

    Raises:
        ConfigError: one of the two files does not exist, or the archive lacks a named file.
    """
    archive = folder / f"{name}.tar"
    if not archive.is_file():
        raise ConfigError(f"the recipe names {archive.name}, which {folder} does not hold")
    with tarfile.open(archive) as tar:
        for record in read_records(folder / f"{name}.jsonl"):
            try:
                member = tar.extractfile(record["file"])
            except KeyError:
                member = None
            if member is None:
                raise ConfigError(f"{archive} holds no file {record['file']}, which {name}.jsonl names")
            yield record, member.read()
