"""A question with the passages that it is to be answered from, as one message; what an answer cites.

Knows words and how many tokens there is room for. Does not know how passages were found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phirt.errors import ContextError
from phirt_apps.output import one_line

from .index import Entry

MOST_PASSAGES = 3  # more mislead small models
_LEAST_TOKENS = 48  # of a passage that is worth quoting
_INSTRUCTION = (  # before the question and behind the passages: small models forget what stands far above
    "Answer this question from the passages above, and cite their numbers, such as [1]. If they do not hold "
    "the answer, say so."
)
_CITED = re.compile(r"\[(\d{1,2}(?:\s*[,;]\s*\d{1,2})*)\]")


@dataclass(frozen=True)
class Citation:
    """A passage that an answer was given, by the number that it has there."""

    number: int
    file: str
    page: int | None
    heading: str | None
    line: int | None
    text: str

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        where = [one_line(self.file)]
        if self.page is not None:
            where.append(f"page {self.page}")
        if self.heading is not None:
            where.append(f"“{one_line(self.heading)}”")
        if self.line is not None:
            where.append(f"line {self.line}")
        return ", ".join(where)


@dataclass(frozen=True)
class Grounded:
    """The message to send, and the passages in it."""

    text: str
    citations: tuple[Citation, ...]


def grounded(question: str, entries: Sequence[Entry], room: int, count: Callable[[str], int]) -> Grounded:
    """The question with as many of the passages as `room` tokens hold; the last one cut where it is the only
    one. `count` tells the tokens of a text. Raises ContextError where not even that fits.
    """
    citations = tuple(_citation(number, entry) for number, entry in enumerate(entries[:MOST_PASSAGES], 1))
    if not citations:
        return Grounded(question, ())
    for most in range(len(citations), 0, -1):
        text = _message(question, citations[:most])
        if count(text) <= room:
            return Grounded(text, citations[:most])
    only = citations[0]
    kept = only.text
    while count(kept) >= _LEAST_TOKENS:
        kept = kept[: len(kept) * 2 // 3]
        only = replace(only, text=f"{kept.rstrip()} …")
        text = _message(question, (only,))
        if count(text) <= room:
            return Grounded(text, (only,))
    raise ContextError(
        "the context has no room left for a passage of the documents; start a new conversation (/reset), or "
        "ask in fewer words"
    )


def _citation(number: int, entry: Entry) -> Citation:
    passage = entry.passage
    return Citation(number, entry.file, passage.page, passage.heading, passage.line, passage.text)


def _message(question: str, citations: Sequence[Citation]) -> str:
    quoted = "\n\n".join(f"[{one.number}] {one.place}\n{one.text}" for one in citations)
    return f"Passages from my documents:\n\n{quoted}\n\n{_INSTRUCTION}\n\n{question}"


def named_in(answer: str, citations: Sequence[Citation]) -> set[int]:
    """The numbers of the passages that an answer cites itself."""
    numbers = {int(part) for found in _CITED.findall(answer) for part in re.split(r"\s*[,;]\s*", found)}
    return numbers & {one.number for one in citations}


def source_lines(answer: str, citations: Sequence[Citation]) -> str:
    """A line for each passage that the answer cites; where it cites none, for each that it was given."""
    named = named_in(answer, citations)
    shown = [one for one in citations if one.number in named] or citations
    head = "from:" if named else "from, though the answer names none of them:"
    return "\n".join([head, *(f"  [{one.number}] {one.place}" for one in shown)])


def as_objects(answer: str, citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """The passages that an answer was given, for a program; `cited` tells whether the answer names it."""
    named = named_in(answer, citations)
    return [
        {
            "number": one.number,
            "file": one.file,
            "page": one.page,
            "heading": one.heading,
            "line": one.line,
            "cited": one.number in named,
            "text": one.text,
        }
        for one in citations
    ]
