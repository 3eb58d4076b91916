"""Files of JSON lines cut into shards: a path and a range of bytes, from which a task reads its records by
itself.

A range begins and ends between two lines, and counts bytes of what a file unpacks to. Bad lines are counted
and left out. Knows files and lines. Knows nothing of what is done with records.
"""

from __future__ import annotations

import dataclasses
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from phirt.errors import ConfigError

MAX_LINE_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Shard:
    """A task's input.

    Attributes:
        source: what the data are called in mixtures and reports.
        path: the file.
        start, stop: bytes of its unpacked lines; a stop of None is the file's end.
        number: which of its source's shards it is.
    """

    source: str
    path: str
    start: int
    stop: int | None
    number: int

    @property
    def place(self) -> str:
        """The shard's place for messages."""
        return f"{self.path} from byte {self.start}"


@dataclasses.dataclass(frozen=True)
class Line:
    """A record, or why its line is none: `fault` is empty for a record."""

    record: dict[str, Any]
    fault: str = ""


def cut(source: str, paths: Sequence[Path], shard_bytes: int) -> list[Shard]:
    """The shards of the files, of about `shard_bytes` unpacked bytes each. Packed files are read through
    once.

    Raises:
        ConfigError: a file cannot be read.
    """
    found: list[Shard] = []
    for path in paths:
        try:
            with _opened(path) as stream:
                starts = list(_starts(stream, shard_bytes))
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise _unreadable(path, error) from error
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            found.append(Shard(source, str(path), start, stop, len(found)))
    return found


def read(shard: Shard) -> Iterator[Line]:
    """The shard's lines that are not empty, in order.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = Path(shard.path)
    try:
        with _opened(path) as stream:
            stream.seek(shard.start)
            while shard.stop is None or stream.tell() < shard.stop:
                raw = stream.readline(MAX_LINE_BYTES)
                if not raw:
                    break
                if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    _skip_line(stream)
                    yield Line({}, f"longer than {MAX_LINE_BYTES} bytes")
                elif raw.strip():
                    yield _parsed(raw)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _unreadable(path, error) from error


def _starts(stream: IO[bytes], shard_bytes: int) -> Iterator[int]:
    yield 0
    reached = 0
    while True:
        target = max(reached, reached + shard_bytes - 1)
        stream.seek(target)
        if stream.tell() < target or not stream.readline():  # a packed file's seek stops at its end
            return
        reached = stream.tell()
        if not stream.read(1):
            return
        yield reached


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return io.BufferedReader(lzma.LZMAFile(path))
    return path.open("rb")


def _skip_line(stream: IO[bytes]) -> None:
    while (more := stream.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
        pass


def _parsed(raw: bytes) -> Line:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return Line({}, "no JSON")
    if not isinstance(value, dict):
        return Line({}, "no JSON object")
    return Line(value)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {error}; give a file of JSON lines in UTF-8, plain or .xz")
