"""Documents of a text file: plain text is one, each line of JSON lines is one; either may be packed by xz.

Knows file formats and bounds of size. Knows nothing of tokens or models.
"""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from phirt.errors import ConfigError

MAX_BYTES = 256 << 20  # unpacked
_KEY = "text"


def read_documents(path: Path) -> list[str]:
    """The documents of `path` (`.jsonl`, or else plain text; with `.xz` behind it packed). A record of JSON
    lines is its `text`, or, where it has none, all strings in it, one a line.

    Raises:
        ConfigError: it is unreadable, larger than MAX_BYTES, no UTF-8, or a line is no JSON object.
    """
    if _suffix(path) != ".jsonl":
        return [_unpacked(path)]
    documents = (_document(record) for record in read_records(path))
    return [document for document in documents if document]


def read_records(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, at most `limit` of them. Raises ConfigError as above."""
    records: list[dict[str, Any]] = []
    for number, line in enumerate(_unpacked(path).split("\n"), start=1):
        if limit is not None and len(records) == limit:
            break
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"line {number} of {path} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(
                f"line {number} of {path} is no JSON object, which each line of a .jsonl file is"
            )
        records.append(record)
    return records


def _suffix(path: Path) -> str:
    """The last suffix before that of xz, in lower case; empty where there is none."""
    name = Path(path.name.lower())
    return (name.with_suffix("") if name.suffix == ".xz" else name).suffix


def _unpacked(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = _bounded(file, path)
            if path.suffix.lower() == ".xz":
                with lzma.open(io.BytesIO(raw)) as packed:
                    raw = _bounded(packed, path)
        return raw.decode("utf-8")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _bounded(file: BinaryIO | lzma.LZMAFile, path: Path) -> bytes:
    raw: bytes = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; give a part of it")
    return raw


def _document(record: dict[str, Any]) -> str:
    text = record.get(_KEY)
    return text if isinstance(text, str) else "\n".join(_strings(record))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
