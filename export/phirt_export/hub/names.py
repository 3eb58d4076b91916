"""What a checkpoint may be called: a folder, or the id of a published one.

Knows how ids are spelled, and how the hub's cache calls its folders. Opens nothing.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from phirt_export.hub.errors import HubError

# A word of an id or of a file's name; the hub has neither `..` nor a leading dot or dash in ids.
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"({_WORD}/{_WORD})(?:/((?:{_WORD}/){{0,3}}{_WORD}\.gguf))?")
_PREFIXES = ("hf://", "https://huggingface.co/", "https://hf.co/")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_CACHED = re.compile(r"models--(?:.+--)?(?P<name>.+)")


@dataclasses.dataclass(frozen=True)
class HubId:
    """A published repository (`owner/name`) at a revision (a branch, a tag or a commit), and the one file of
    it that is meant, or None for the checkpoint as a whole.

    Raises:
        HubError: the revision cannot be one.
    """

    repo: str
    revision: str = "main"
    file: str | None = None

    def __post_init__(self) -> None:
        if not _REVISION.fullmatch(self.revision) or ".." in self.revision or "//" in self.revision:
            raise HubError(
                f"{self.revision[:80]!r} cannot be a revision of {self.repo}; accepted: the name of a branch "
                "or tag, or a commit"
            )

    def __str__(self) -> str:
        return self.repo if self.file is None else f"{self.repo}/{self.file}"


def hub_id(text: str, revision: str | None = None) -> HubId | None:
    """The id that `text` spells; None where it is a path: where something of that name exists, it is meant.

    An id is `owner/name`, or `owner/name/FILE.gguf` for one file of a repository; the address of its page
    serves as well.
    """
    prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), "")
    if not prefix and Path(text).expanduser().exists():
        return None
    match = _ID.fullmatch(text[len(prefix) :].rstrip("/") if prefix else text)
    if match is None or ".." in text or "--" in match[1]:
        return None
    return HubId(match[1], revision or "main", match[2])


def published_name(checkpoint: Path) -> str:
    """A checkpoint's name: its folder's, or, where that is a snapshot in the hub's cache (named by a commit),
    the repository's.
    """
    place = checkpoint.absolute()
    inside = place.parent if place.suffix == ".gguf" else place
    match = _CACHED.fullmatch(inside.parent.parent.name) if inside.parent.name == "snapshots" else None
    if place.suffix == ".gguf":
        return place.stem
    return match["name"] if match else place.name
