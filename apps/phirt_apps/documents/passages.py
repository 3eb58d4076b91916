"""Documents cut into passages: what is searched, quoted to a model and cited.

Knows paragraphs, sentences and words. Does not know files or models.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .reading import Section

# Long enough to answer from, short enough that several fit into a small model's prompt, and that a small
# encoder reads all of it (256 tokens).
MOST = 1_000
_BLANK = re.compile(r"\n[ \t]*\n")
_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Passage:
    """A few sentences, and where they stand."""

    text: str
    page: int | None
    heading: str | None
    line: int | None


def cut(sections: Iterable[Section]) -> Iterator[Passage]:
    """Whole paragraphs together as long as they fit, long ones between sentences."""
    for section in sections:
        held: list[str] = []
        length, first = 0, section.line
        for line, piece in _pieces(section):
            if held and length + len(piece) > MOST:
                yield _passage(section, held, first)
                held, length = [], 0
            if not held:
                first = line
            held.append(piece)
            length += len(piece) + 2
        if held:
            yield _passage(section, held, first)


def _passage(section: Section, pieces: list[str], line: int | None) -> Passage:
    return Passage("\n\n".join(pieces), section.page, section.heading, line)


def _pieces(section: Section) -> Iterator[tuple[int | None, str]]:
    """Paragraphs, or parts of long ones, none longer than a passage, each with its first line."""
    at, line = 0, section.line
    ends = (found.span() for found in _BLANK.finditer(section.text))
    for stop, following in itertools.chain(ends, [(len(section.text), len(section.text))]):
        paragraph = section.text[at:stop]
        if line is not None:
            lead = len(paragraph) - len(paragraph.lstrip())
            first = line + paragraph[:lead].count("\n")
            line += section.text[at:following].count("\n")
        else:
            first = 0
        for before, piece in _parts(paragraph):
            yield (None if line is None else first + before), piece
        at = following


def _parts(paragraph: str) -> Iterator[tuple[int, str]]:
    """Parts no longer than a passage, each with the lines that come before it in the paragraph."""
    text = paragraph.strip()
    begin = lines = 0
    while begin < len(text):
        stop = len(text) if len(text) - begin <= MOST else _last_break(text, begin)
        piece = text[begin:stop].strip()
        if piece:
            yield lines, piece
        lines += text.count("\n", begin, stop)
        begin = stop


def _last_break(text: str, begin: int) -> int:
    """Where to cut: behind the last sentence that fits, the last word, or in the middle of something."""
    stop = begin + MOST
    window = text[begin:stop]
    sentences = [found.end() for found in _SENTENCE.finditer(window)]
    if sentences and sentences[-1] > MOST // 3:
        return begin + sentences[-1]
    space = max(window.rfind(" "), window.rfind("\n"))
    return begin + space + 1 if space > MOST // 3 else stop
