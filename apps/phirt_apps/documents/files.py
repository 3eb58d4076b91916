"""The files of a folder that may be documents, and one of them opened.

Knows file systems: links, pipes, names that are no text, what takes another's place. Does not know what is in
a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from phirt.errors import ConfigError, PhirtError
from phirt.runtime.own_folder import OwnFolder
from phirt_apps.output import one_line

from .limits import Limits

# Of text, Markdown and PDF. What is inside decides, names only choose what is looked into; so a file without
# a suffix (README, LICENSE) is looked into, and a picture is not.
SUFFIXES = frozenset(
    {"", ".txt", ".text", ".md", ".markdown", ".mdown", ".mkd", ".rst", ".org", ".adoc", ".log", ".pdf"}
)
_FILE = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FILE |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")

Identity = tuple[int, int]  # of a file: its device, and its number there


class DocumentError(PhirtError):
    """A file cannot be read as a document. The text completes "FILE …"."""


class TransientError(DocumentError):
    """It may be readable the next time: not what is in it was in the way, but the system."""


@dataclass(frozen=True)
class Found:
    """A plain file; `name` is its path within the folder, and `stamp` changes when the file does."""

    path: Path
    name: str
    stamp: str
    changed_ns: int
    identity: Identity


@dataclass
class Listing:
    """What lies in a folder: files that may be documents, and lines about what is not looked at. `unseen` are
    names of which nothing is known now; those of folders end with a slash.
    """

    found: list[Found] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    is_full: bool = False

    def is_gone(self, name: str) -> bool:
        """Whether a file that is not among those found is in the folder no more."""
        return not any(
            name.startswith(one) if one.endswith("/") else name == one or name.startswith(f"{one}/")
            for one in self.unseen
        )


def list_files(root: Path, limits: Limits) -> Listing:
    """The documents of a folder, by name; of a file it alone. Hidden ones are left out, links not followed:
    what they lead to may lie elsewhere, or around them. `root` itself may be a link. Raises ConfigError for a
    folder that cannot be listed, of which it is not known that it is empty.
    """
    listing = Listing()
    try:
        real = root.resolve(strict=True)
        if real.is_file():
            _take(real, _shown(root.name), real.stat(), listing, limits)
        else:
            with OwnFolder(real) as folder:
                _walk(folder, sorted(folder.names()), "", listing, limits)
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{one_line(str(root))} cannot be listed: {why}; name a folder that can, or ask again later"
        ) from error
    return listing


def _walk(folder: OwnFolder, names: list[str], prefix: str, listing: Listing, limits: Limits) -> None:
    """Takes what lies in a folder that is held open."""
    for plain in names:
        if listing.is_full:
            return
        if plain.startswith("."):
            continue
        name = prefix + _shown(plain)
        try:
            state = folder.state(plain)
            if state is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError as error:
            listing.left_out.append(f"{name} cannot be looked at: {error.strerror}")
            listing.unseen.append(name)
            continue
        if stat.S_ISLNK(state.st_mode):
            if _suffix(name) in SUFFIXES:
                listing.left_out.append(f"{name} is a link, which is not followed")
        elif stat.S_ISDIR(state.st_mode):
            _enter(folder, plain, f"{name}/", listing, limits)
        elif _suffix(name) in SUFFIXES:
            _take(folder.path / plain, name, state, listing, limits)


def _enter(within: OwnFolder, plain: str, prefix: str, listing: Listing, limits: Limits) -> None:
    """Walks through a folder in a folder, if it lies not too deep."""
    if prefix.count("/") >= limits.depth:
        listing.left_out.append(f"{prefix[:-1]} lies deeper than {limits.depth} folders")
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(within.inner(plain))
            names = sorted(folder.names())
        except OSError as error:
            listing.left_out.append(f"{prefix} cannot be listed: {error.strerror}")
            listing.unseen.append(prefix)
            return
        _walk(folder, names, prefix, listing, limits)


def _take(path: Path, name: str, state: os.stat_result, listing: Listing, limits: Limits) -> None:
    if not stat.S_ISREG(state.st_mode):
        listing.left_out.append(f"{name} is no plain file")
    elif len(listing.found) >= limits.files:
        listing.left_out.append(f"{limits.files:,} files are read at most; {name} and what follows is not")
        listing.is_full = True
    else:
        changed = max(state.st_mtime_ns, state.st_ctime_ns)
        stamp = f"{state.st_size}:{state.st_mtime_ns}:{state.st_ctime_ns}:{state.st_ino}"
        listing.found.append(Found(path, name, stamp, changed, _identity(state)))


def _identity(state: os.stat_result) -> Identity:
    return state.st_dev, state.st_ino


def _shown(name: str) -> str:
    r"""The name as text, whatever bytes it has, and another one for each name: bytes that are no text become
    \xff, and where that is in the name itself, its backslashes are doubled.
    """
    data = os.fsencode(name)
    text = data.decode("utf-8", "backslashreplace")
    return data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace") if _ESCAPED.search(text) else text


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


@contextlib.contextmanager
def opened(path: Path, identity: Identity | None = None) -> Iterator[BinaryIO]:
    """The file, if it is still a plain one, and the one of this `identity`: a pipe in its place is not waited
    for, and where a folder above it has become a link, what lies behind that is not read. Raises
    DocumentError.
    """
    try:
        descriptor = os.open(path, _FILE)
    except OSError as error:
        raise TransientError(f"cannot be read: {error.strerror or error}") from error
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise DocumentError("is no plain file")
        if identity not in (None, _identity(state)):
            raise TransientError("was replaced by another file while the folder was looked through")
        try:
            yield file
        except OSError as error:
            raise TransientError(f"cannot be read: {error.strerror or error}") from error
