"""The files of a folder that may be documents, and one of them opened.

Knows file systems: links, pipes, names that are no text. Does not know what is in a file.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from phirt.errors import PhirtError

from .limits import Limits

# Of text, Markdown and PDF. What is inside decides, names only choose what is looked into; so a file without
# a suffix (README, LICENSE) is looked into, and a picture is not.
SUFFIXES = frozenset(
    {"", ".txt", ".text", ".md", ".markdown", ".mdown", ".mkd", ".rst", ".org", ".adoc", ".log", ".pdf"}
)
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class DocumentError(PhirtError):
    """A file cannot be read as a document. The text completes "FILE …"."""


@dataclass(frozen=True)
class Found:
    """A plain file; `name` is its path within the folder, and `stamp` changes when the file does."""

    path: Path
    name: str
    stamp: str
    changed_ns: int


@dataclass
class Listing:
    """What lies in a folder: files that may be documents, and lines about what is not looked at."""

    found: list[Found] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def list_files(root: Path, limits: Limits) -> Listing:
    """The documents of a folder, by name; of a file it alone. Hidden ones are left out, links not followed:
    what they lead to may lie elsewhere, or around them.
    """
    listing = Listing()
    if root.is_file():
        _take(root, root.name, root.stat(), listing)
    else:
        _walk(root, "", 0, listing, limits)
    return listing


def _walk(folder: Path, prefix: str, depth: int, listing: Listing, limits: Limits) -> None:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        listing.left_out.append(f"{prefix or folder} cannot be listed: {error.strerror}")
        return
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        name = prefix + _shown(entry.name)
        if len(listing.found) >= limits.files:
            listing.left_out.append(
                f"{limits.files:,} files are read at most; {name} and what follows is not"
            )
            return
        try:
            state = entry.stat(follow_symlinks=False)
        except OSError as error:  # gone meanwhile
            listing.left_out.append(f"{name} cannot be looked at: {error.strerror}")
            continue
        if stat.S_ISLNK(state.st_mode):
            if _suffix(name) in SUFFIXES:
                listing.left_out.append(f"{name} is a link, which is not followed")
        elif stat.S_ISDIR(state.st_mode):
            if depth + 1 >= limits.depth:
                listing.left_out.append(f"{name} lies deeper than {limits.depth} folders")
            else:
                _walk(folder / entry.name, f"{name}/", depth + 1, listing, limits)
        elif _suffix(name) in SUFFIXES:
            _take(folder / entry.name, name, state, listing)


def _take(path: Path, name: str, state: os.stat_result, listing: Listing) -> None:
    if stat.S_ISREG(state.st_mode):
        changed = max(state.st_mtime_ns, state.st_ctime_ns)
        stamp = f"{state.st_size}:{state.st_mtime_ns}:{state.st_ctime_ns}:{state.st_ino}"
        listing.found.append(Found(path, name, stamp, changed))
    else:
        listing.left_out.append(f"{name} is no plain file")


def _shown(name: str) -> str:
    """The name as text, whatever bytes it has."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, if it is still a plain one: a pipe in its place is not waited for. Raises DocumentError."""
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        raise DocumentError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DocumentError("is no plain file")
        try:
            yield file
        except OSError as error:
            raise DocumentError(f"cannot be read: {error.strerror or error}") from error
