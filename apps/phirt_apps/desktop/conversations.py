"""Kept conversations and the models to hold them with, as a person chooses among them.

Knows a folder of phirt's own conversation files, how to list them without opening a model, and the names that
`phirt list` shows. Does not know windows. A file that cannot be read is left out of the list, and never
touched.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phirt.chat.place import DAMAGED, DOCUMENT, BoundedFile, reserve
from phirt.errors import ConversationError, PhirtError
from phirt_apps.models import named_models
from phirt_apps.output import one_line

ENDING = ".phirt"
_MOST_LISTED = 500
_MOST_BYTES = 32 << 20  # of texts; beyond, the file is no conversation that phirt has saved
_TITLE = 60
# What a file raises that is damaged, packed wrongly, or another kind of document.
_NONE_OF_OURS = (*DAMAGED, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Saved:
    """One kept conversation: its file, what it began with, and the fingerprint of its model."""

    path: Path
    title: str
    bundle: str
    changed: float


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen: its name, or its folder's, and the folder."""

    label: str
    folder: Path


def default_folder() -> Path:
    """Where this user's conversations are kept. Raises ConversationError where the user has no folder."""
    import platformdirs

    try:
        folder = platformdirs.user_data_path("phirt", appauthor=False) / "conversations"
    except (OSError, RuntimeError) as error:
        raise ConversationError("this user has no folder; name one: --conversations FOLDER") from error
    return folder


def prepare(folder: Path) -> None:
    """Makes the folder, for this user alone. Raises ConversationError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConversationError(
            f"conversations cannot be kept in {folder}: {reason}; name another folder: --conversations FOLDER"
        ) from error


def new_place(folder: Path) -> Path:
    """A name in the folder that no conversation has."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return folder / f"{stamp}-{secrets.token_hex(2)}{ENDING}"


def saved_in(folder: Path) -> list[Saved]:
    """The conversations of the folder, the latest first."""
    paths: list[Path] = []
    with contextlib.suppress(OSError):  # it may be gone by now; then there are none
        paths.extend(folder.glob(f"*{ENDING}"))
    dated = []
    for path in paths:
        with contextlib.suppress(OSError):  # deleted meanwhile, or a link to nowhere; the others are there
            dated.append((path.stat().st_mtime, path))
    dated.sort(reverse=True)
    summaries = (_summary(path, changed) for changed, path in dated[:_MOST_LISTED])
    return [one for one in summaries if one is not None]


def delete(path: Path) -> None:
    """Removes a kept conversation; nothing else, and none that another process has. Raises
    ConversationError.
    """
    if not path.exists():
        return
    with reserve(path):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConversationError(f"{path.name} cannot be deleted: {error.strerror}") from error


def choices() -> list[Choice]:
    """The models that have names, the embedded one first."""
    return [Choice(name, folder) for name, folder in named_models()]


def choice_for(fingerprint: str, among: list[Choice]) -> Choice | None:
    """The model that a conversation was held with, or that continues it; None where none of these does."""
    from phirt.bundle.files import load_any

    for choice in among:
        with contextlib.suppress(PhirtError):  # one that is unusable is not it
            manifest = load_any(choice.folder)
            if fingerprint in (manifest.fingerprint, *getattr(manifest, "continues", ())):
                return choice
    return None


def _summary(path: Path, changed: float) -> Saved | None:
    try:
        if not path.is_file():
            return None
        with BoundedFile(path) as stream, zipfile.ZipFile(stream) as archive:
            info = archive.getinfo(DOCUMENT)
            # `chat.store` writes and reads no compressed parts.
            if info.file_size > _MOST_BYTES or info.compress_type != zipfile.ZIP_STORED:
                return None
            stream.limit = None  # its directory is read; from here on sizes are known
            document = json.loads(archive.read(DOCUMENT))
        return Saved(path, _title(document) or path.stem, str(document["bundle"]), changed)
    except _NONE_OF_OURS:
        return None


def _title(document: dict[str, Any]) -> str:
    """What the person said first."""
    for message in document["messages"]:
        if message["role"] == "user" and (text := one_line(str(message["content"]))):
            return text if len(text) <= _TITLE else f"{text[: _TITLE - 1]}…"
    return ""
