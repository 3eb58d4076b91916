"""The media that records name: in a tar beside their file, or in files beside it.

Knows where they lie and bounds of size. Knows nothing of what they hold.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from phirt.errors import ConfigError

MAX_FILE_BYTES = 256 << 20


def read_media(records: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of each name, which a file of records such as speech.val.jsonl has: from speech.val.tar, or
    else from files beside it.

    Raises:
        ConfigError: a file is missing, cannot be read, or is larger than MAX_FILE_BYTES.
    """
    archive = records.with_name(records.name.removesuffix(".xz").removesuffix(".jsonl") + ".tar")
    try:
        if not archive.is_file():
            return {name: _beside(records, name) for name in names}
        with tarfile.open(archive) as tar:
            return {name: _member(tar, archive, name) for name in names}
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"the media of {records} cannot be read: {error}") from error


def _beside(records: Path, name: str) -> bytes:
    path = records.parent / name
    if not path.resolve().is_relative_to(records.parent.resolve()) or not path.is_file():
        raise ConfigError(f"{records} names {name!r:.200}, which is no file beside it")
    with path.open("rb") as file:
        return _bounded(file.read(MAX_FILE_BYTES + 1), name)


def _member(tar: tarfile.TarFile, archive: Path, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ConfigError(f"{archive} holds no {name!r:.200}")
    return _bounded(file.read(MAX_FILE_BYTES + 1), name)


def _bounded(raw: bytes, name: str) -> bytes:
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{name!r:.200} is larger than {MAX_FILE_BYTES} bytes; leave it out")
    return raw
