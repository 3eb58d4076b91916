"""Text that users keep in files: of which encoding it is, and how much of it is read.

Knows bytes. Does not know what a text means.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from phirt.errors import ConfigError

# Byte order marks, the longer ones first: that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def read_text_file(path: Path, name: str, max_bytes: int) -> str:
    """The text of a small file, which errors call `name`. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {name} {path}: {reason}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{name} {path} is too long; at most {max_bytes:,} bytes are read")
    return decode(data, f"{name} {path}")


def decode(data: bytes, name: str) -> str:
    """The text without its byte order mark: UTF-8, or what the mark says. Raises ConfigError."""
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = error.start + len(mark)
        raise ConfigError(
            f"{name} is not {encoding.upper()} text (byte {place}); convert it to UTF-8"
        ) from error
    if text.count("\0") * 8 > len(text):  # a log may hold a few
        raise ConfigError(f"{name} is binary, or UTF-16 without a byte order mark; convert it to UTF-8")
    return text
