"""What a document says: its text in sections, each with the page or the heading under which it stands.

Knows encodings and the headings of Markdown. Does not know how long a passage is, nor folders.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from phirt_apps.output import size
from phirt_apps.text_files import MARKS

from .files import DocumentError
from .limits import Limits
from .pdf import read_pages, require_reader

_PDF = b"%PDF-"
_HEAD = 1024  # bytes, within which a PDF says that it is one (PDF 32000-1, annex H.3.4.1)
_CHUNK = 1 << 20
_MARKDOWN = (".md", ".markdown", ".mdown", ".mkd")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_BINARY_SHARE = 0.01  # of control characters; a log with colours has fewer
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(={2,}|-{2,})[ \t]*$")
_MAX_HEADING = 200


@dataclass(frozen=True)
class Section:
    """A stretch of text under one heading or on one page; `line` is its first line, of files with lines."""

    text: str
    page: int | None = None
    heading: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Document:
    """What was read of a file; `remark` says what of it was not, `time_up` that this is for lack of time, and
    `guess` how it was understood. Sections come one by one, once.
    """

    sections: Iterable[Section]
    remark: str | None = None
    guess: str | None = None
    time_up: bool = False


def is_pdf(file: BinaryIO, name: str) -> bool:
    """Whether the file says that it is a PDF: at its beginning, whatever its name, as texts may mention how
    PDFs begin; one that is called a PDF may have something before that.
    """
    file.seek(0)
    head = file.read(_HEAD)
    if name.lower().endswith(".pdf"):
        return _PDF in head
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(_PDF)


def require_readable(file: BinaryIO, name: str, limits: Limits) -> None:
    """Raises DocumentError for a file larger than what is read of its kind, or that cannot be read here."""
    kind, most = "text", limits.text_bytes
    if is_pdf(file, name):
        require_reader()
        kind, most = "a PDF", limits.pdf_bytes
    nbytes = os.fstat(file.fileno()).st_size
    if nbytes > most:
        raise DocumentError(f"has {size(nbytes)}; at most {size(most)} of {kind} are read")


def digest(file: BinaryIO) -> str:
    """The sha256 of the whole file."""
    file.seek(0)
    total = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        total.update(chunk)
    return total.hexdigest()


def read_document(file: BinaryIO, name: str, limits: Limits) -> Document:
    """Reads a file as what it is. Raises DocumentError."""
    if is_pdf(file, name):
        pages = read_pages(file, limits)
        sections = tuple(Section(text, page=number) for number, text in pages.texts)
        return Document(sections, pages.remark, time_up=pages.time_up)
    file.seek(0)
    text, guess = _decoded(file.read(limits.text_bytes))
    text = text[: limits.characters].replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise DocumentError("holds no text")
    if name.lower().endswith(_MARKDOWN):
        return Document(_markdown(text), guess=guess)
    return Document((Section(text, line=1),), guess=guess)


def _decoded(data: bytes) -> tuple[str, str | None]:
    """The text, and what was guessed of its encoding. Raises DocumentError for what is no text."""
    if data.startswith(b"%!PS") or not data:
        raise DocumentError("is no text" if data else "is empty")
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    guesses = [encoding] if encoding else ["utf-8", *_wide(data)]
    for guess in guesses:
        try:
            text = data.decode(guess).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
        if not _is_binary(text):
            return text, None
    text = data.decode("cp1252", "replace")
    if encoding is not None or _is_binary(text):
        raise DocumentError("is binary, or of an encoding that is not known; save it as UTF-8")
    return text, "is not UTF-8, so it is read as Windows-1252"


def _wide(data: bytes) -> list[str]:
    """UTF-16 without its mark has a zero in every second byte of Latin text."""
    sample = data[:4096]
    half = max(1, len(sample) // 2)
    if len(data) % 2 == 0 and sample[1::2].count(0) > half / 2:
        return ["utf-16-le"]
    if len(data) % 2 == 0 and sample[0::2].count(0) > half / 2:
        return ["utf-16-be"]
    return []


def _is_binary(text: str) -> bool:
    return len(_CONTROLS.findall(text)) > _BINARY_SHARE * len(text)


def _markdown(text: str) -> Iterator[Section]:
    """A section for each heading, with the headings above it in front of its own; made as they are asked for,
    as a file can have a million of them.
    """
    some = False
    trail: list[tuple[int, str]] = []  # level and words of the headings above
    body: list[str] = []
    begin = 1
    fence: str | None = None

    for number, line in enumerate(_lines(text), 1):
        opened = _FENCE.match(line)
        if fence is not None:
            fence = None if opened and opened[1].startswith(fence) else fence
            body.append(line)
            continue
        fence = opened[1] if opened else None
        level, words = _heading(line, body)
        if level == 0:
            body.append(line)
            continue
        under_line = _ATX.match(line) is None  # the words are the last line of what came before
        if under_line:
            body.pop()
        if section := _section(body, trail, begin):
            some = True
            yield section
        trail = [above for above in trail if above[0] < level]
        if words:
            trail.append((level, words))
        body, begin = [], number + 1
    if section := _section(body, trail, begin):
        yield section
    elif not some:  # nothing but headings
        yield Section(text, line=1)


def _lines(text: str) -> Iterator[str]:
    begin = 0
    while (end := text.find("\n", begin)) >= 0:
        yield text[begin:end]
        begin = end + 1
    yield text[begin:]


def _section(body: list[str], trail: list[tuple[int, str]], begin: int) -> Section | None:
    """The lines under a heading, unless they are empty."""
    text = "\n".join(body).rstrip()
    heading = " › ".join(words for _, words in trail)[:_MAX_HEADING] or None
    return Section(text, heading=heading, line=begin) if text else None


def _heading(line: str, before: list[str]) -> tuple[int, str]:
    """The level and the words of a heading that ends with this line; level 0 where none does."""
    marks = _ATX.match(line)
    if marks:
        words = line[marks.end() :].strip()
        bare = words.rstrip("#")
        return len(marks[1]), (bare if bare == "" or bare[-1:].isspace() else words).strip()[:_MAX_HEADING]
    under = _UNDERLINE.match(line)
    alone = under and before and before[-1].strip() and (len(before) < 2 or not before[-2].strip())
    if under and alone and not before[-1].lstrip().startswith(("-", "*", ">", "|", "`")):
        return (1 if under[1][0] == "=" else 2), before[-1].strip()[:_MAX_HEADING]
    return 0, ""
