"""The pictures and recordings that a message names: dropped on the terminal, pasted, or typed.

Knows how terminals and people write paths, and that a file's first bytes show what it is. Does not know what
becomes of the files. A path to nothing, or to another kind of file, is text like any other.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from phirt_apps.home import expand_home

MediaKind = Literal["image", "audio"]

_WINDOWS = os.name == "nt"
_QUOTES = {"'": "'", '"': '"'}
_PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`"}
_ESCAPABLE = ('"', "\\", "$", "`")  # within double quotes
_OPENING = "".join(_PAIRS) + "'\""
_CLOSING = ".,;:!?…" + "".join(_PAIRS.values()) + "'\""
_PATH = re.compile(r"(?:/|~|\.{1,2}[/\\]|\\\\|[A-Za-z]:[/\\]|file:)", re.IGNORECASE)
_NAME = re.compile(r"\.\w{1,5}$")  # a name without a folder has an ending at least
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_MOST_WORDS = 12  # of a name with spaces that nobody has quoted
_MOST_READINGS = 2000  # of paths in one message
_HEAD = 4096


@dataclass(frozen=True)
class DroppedFile:
    """A media file, and where the message names it."""

    path: Path
    kind: MediaKind
    start: int
    end: int


def find_media(text: str, *, windows: bool = _WINDOWS) -> list[DroppedFile]:
    """The media files that the text names, in its order."""
    if "\n" not in text and (_PATH.match(text) or _NAME.search(text)):
        path = typed_path(text, windows=windows)
        if kind := media_kind(path):
            return [DroppedFile(path, kind, 0, len(text))]
    found: list[DroppedFile] = []
    position = looked = 0
    while position < len(text) and looked < _MOST_READINGS:
        if text[position].isspace() or text[position] in _PAIRS:
            position += 1
            continue
        file = None
        for path, end in _readings(text, position, windows=windows):
            looked += 1
            kind = media_kind(path)
            if kind is not None:
                file = DroppedFile(path, kind, position, end)
                break
        if file is not None:
            found.append(file)
            position = file.end
        else:
            position = position + 1 if text[position] in _QUOTES else _word_end(text, position)
    return found


def without(text: str, files: list[DroppedFile]) -> str:
    """The text without the names of these files: what the person has said about them."""
    for file in reversed(files):
        start, end = file.start, file.end
        before, after = text[start - 1 : start], text[end : end + 1]
        if before and after and _PAIRS.get(before) == after:
            start, end = start - 1, end + 1
            before, after = text[start - 1 : start], text[end : end + 1]
        if before in (" ", "\t") and (not after or after.isspace() or after in _CLOSING):
            start -= 1
        elif (not before.strip() or before in _OPENING) and after in (" ", "\t"):
            end += 1
        text = text[:start] + text[end:]
    return text.strip()


def typed_path(text: str, *, windows: bool = _WINDOWS) -> Path:
    """The file that a whole argument names: with spaces, quotes, backslashes, `~` or as `file://`.

    A name that exists as it stands is taken as it stands.
    """
    text = text.strip()
    plain = expand_home(text)
    if _exists(plain):
        return plain
    if _is_file_url(text):
        return _from_url(text, windows=windows) or plain
    if windows:  # backslashes separate folders there
        return expand_home(text.strip('"'))
    try:
        words = shlex.split(text)
    except ValueError:
        return plain
    return expand_home(words[0]) if len(words) == 1 else plain


def media_kind(path: Path) -> MediaKind | None:
    """Whether the file is a picture or a recording, by its first bytes; None for anything else or nothing."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):  # ValueError: a zero character in the name
        return None
    return kind_of(head)


def _readings(text: str, start: int, *, windows: bool) -> Iterator[tuple[Path, int]]:
    """What could be a path that begins here, with its end in the text: longer ones first."""
    if text[start] in _QUOTES or (not windows and "\\" in text[start : _word_end(text, start)]):
        yield from _quoted(text, start, windows=windows)
    if text[start] in _QUOTES:
        return
    first = text[start : _word_end(text, start)]
    if _ADDRESS.match(first):
        return
    if not _PATH.match(first):
        for shorter in _trimmed(first):
            if _NAME.search(shorter):
                yield expand_home(shorter), start + len(shorter)
        return
    for end in reversed(_word_ends(text, start)):
        for raw in _trimmed(text[start:end]):
            if _is_file_url(raw):
                path = _from_url(raw, windows=windows)
                if path is not None:
                    yield path, start + len(raw)
                continue
            yield expand_home(raw), start + len(raw)
            if not windows and "\\" in raw:
                yield expand_home(re.sub(r"\\(.)", r"\\1", raw)), start + len(raw)


def _quoted(text: str, start: int, *, windows: bool) -> Iterator[tuple[Path, int]]:
    """Readings with quotes: as a shell joins them with what touches them, and up to the closing quote."""
    if not windows:
        word = _shell_word(text, start)
        if word is not None:
            value, end = word
            yield _from(value, windows=windows), end
    if text[start] in _QUOTES:
        closing = text.find(text[start], start + 1)
        value = text[start + 1 : closing] if closing > 0 else ""
        if value and "\n" not in value and (_PATH.match(value) or _NAME.search(value)):
            yield _from(value, windows=windows), closing + 1


def _shell_word(text: str, start: int) -> tuple[str, int] | None:
    """The word of a POSIX shell that begins here, and its end; None where a quote is left open."""
    value, position, quote = [], start, ""
    while position < len(text):
        character = text[position]
        if quote:
            if character == quote:
                quote = ""
            elif (
                character == "\\"
                and quote == '"'
                and text[position + 1 : position + 2] in ('"', "\\", "$", "`")
            ):
                position += 1
                value.append(text[position])
            else:
                value.append(character)
        elif character.isspace():
            break
        elif character in _QUOTES:
            quote = character
        elif character == "\\" and position + 1 < len(text):
            position += 1
            value.append(text[position])
        else:
            value.append(character)
        position += 1
    word = "".join(value)
    if quote or not (_PATH.match(word) or _NAME.search(word)):
        return None
    return word, position


def _word_end(text: str, start: int) -> int:
    found = re.compile(r"\S+").match(text, start)
    return found.end() if found else start + 1


def _word_ends(text: str, start: int) -> list[int]:
    """The ends of this word and those after it on the line."""
    line_end = text.find("\n", start)
    words = re.finditer(r"\S+", text[start : line_end if line_end >= 0 else len(text)])
    return [start + word.end() for word in islice(words, _MOST_WORDS)]


def _trimmed(raw: str) -> Iterator[str]:
    """The text as it is, and without the punctuation that a sentence has put behind it."""
    yield raw
    while len(raw) > 1 and raw[-1] in _CLOSING:
        raw = raw[:-1]
        yield raw


def _from(value: str, *, windows: bool) -> Path:
    return (_from_url(value, windows=windows) if _is_file_url(value) else None) or expand_home(value)


def _is_file_url(value: str) -> bool:
    return value[:5].lower() == "file:"


def _from_url(url: str, *, windows: bool) -> Path | None:
    """The file of a `file:` address; None for one of another machine."""
    try:
        parts = urlsplit(url.replace("#", "%23").replace("?", "%3F"))
    except ValueError:
        return None
    name = os.fsdecode(unquote_to_bytes(parts.path))
    if windows and parts.netloc not in ("", "localhost"):
        return Path(f"//{parts.netloc}{name}")
    if parts.netloc not in ("", "localhost"):
        return None
    if windows and re.match(r"/[A-Za-z]:", name):
        name = name[1:]
    return Path(name) if name else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or one with a zero character
        return False


def kind_of(head: bytes) -> MediaKind | None:
    """What begins with these bytes."""
    from phirt.encoders.formats.signatures import identify

    kinds: dict[str, MediaKind] = {"picture": "image", "sound": "audio", "film": "audio"}
    return kinds.get(identify(head).kind)


def names_a_file(text: str, *, windows: bool = _WINDOWS) -> bool:
    """Whether the text is nothing but the path of a file, of whatever kind."""
    if "\n" in text or not _PATH.match(text.lstrip("'\"")):
        return False
    path = typed_path(text, windows=windows)
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
