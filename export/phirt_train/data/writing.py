"""Records as they are written: what `phirt_train.data.records` reads back, without its defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phirt_train.data.messages import write_lines


def plain_record(record: Any) -> dict[str, Any]:
    """The JSON object of a record, without fields that have their defaults."""
    return {
        field.metadata.get("key", field.name): _plain(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if getattr(record, field.name) != _default(field)
    }


def write_records(path: Path, records: Iterable[Any]) -> int:
    """Write records as JSON lines; returns how many."""
    return write_lines(path, map(plain_record, records))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return plain_record(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
