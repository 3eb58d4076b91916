"""Strings that remember where each of their characters came from: a template, or outside.

Knows spans and the methods of `str`. Knows nothing of templates, messages or tokens.

A template may trim what was said, split it, cut it, join it. A TracedText does all of this as the `str` that
it is, and carries along for each character which piece of text from outside it belongs to, if to any.
Whatever text comes out of an operation that is not followed here counts as a whole as text from outside: a
mistake can cost a control token its meaning, and never give one to what somebody typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

TEMPLATE = -1  # the piece that a template's own characters belong to
CHANGED = -1  # where a character stands in its piece, once its case or its escapes are others


class Span(NamedTuple):
    """`length` characters in a row that belong to one piece, the first of them at `start` in it. One without
    length tells that something changed beside it comes from that piece as well.
    """

    length: int
    piece: int
    start: int

    @property
    def stop(self) -> int:
        """Where the next character of the piece would stand; never a place for what is changed."""
        return CHANGED if self.start == CHANGED else self.start + self.length


class TracedText(str):
    """A string with the origin of each character in `_spans`, whose lengths add up to its own."""

    __slots__ = ("_spans",)
    _spans: tuple[Span, ...]

    def __new__(cls, text: str, spans: Iterable[Span]) -> TracedText:
        made = super().__new__(cls, text)
        made._spans = _merged(spans)
        assert sum(span.length for span in made._spans) == len(text)
        return made

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self._cut(at, at + 1) for at in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._cut(start, max(start, stop))
            return joined([self._cut(at, at + 1) for at in range(start, stop, step)])
        at = range(len(self))[key]
        return self._cut(at, at + 1)

    def __add__(self, other: str) -> str:
        return joined([self, other]) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined([other, self]) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return joined([self] * max(0, count.__index__()))

    __rmul__ = __mul__

    def strip(self, chars: str | None = None, /) -> str:
        """As `str`."""
        return traced(self.lstrip(chars)).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        """As `str`."""
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        """As `str`."""
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        """As `str`."""
        return self._cut(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str, /) -> str:
        """As `str`."""
        return self._cut(0, len(self) - (len(suffix) if self.endswith(suffix) else 0))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str`."""
        return self._parts(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str`."""
        return self._parts(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As `str`."""
        lines: list[str] = []
        at = 0
        whole, bare = str.splitlines(self, keepends=True), str.splitlines(self)
        for line, text in zip(whole, bare, strict=True):
            lines.append(self._cut(at, at + len(line if keepends else text)))
            at += len(line)
        return lines

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str`."""
        return self._three(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str`."""
        return self._three(str.rpartition(self, sep))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """As `str`."""
        if not old:
            return outside(str.replace(self, old, new, count), (self, new))
        return joined(self.split(old, count), new)

    def join(self, items: Iterable[str], /) -> str:
        """As `str`."""
        return joined(items, self)

    def upper(self) -> str:
        """As `str`."""
        return changed(self, str.upper(self))

    def lower(self) -> str:
        """As `str`."""
        return changed(self, str.lower(self))

    def title(self) -> str:
        """As `str`."""
        return changed(self, str.title(self))

    def capitalize(self) -> str:
        """As `str`."""
        return changed(self, str.capitalize(self))

    def _cut(self, start: int, stop: int) -> TracedText:
        """The characters from `start` to `stop`, both inside."""
        spans, at = [], 0
        for span in self._spans:
            low, high = max(start - at, 0), min(stop - at, span.length)
            if low < high or (not span.length and start <= at <= stop):
                first = CHANGED if span.start == CHANGED else span.start + low
                spans.append(Span(max(0, high - low), span.piece, first))
            at += span.length
            if at > stop:
                break
        return TracedText(str.__getitem__(self, slice(start, stop)), spans)

    def _parts(self, parts: Sequence[str], sep: str | None) -> list[str]:
        """These parts of the string, which stand in it one after the other."""
        found: list[str] = []
        at = 0
        for part in parts:
            start = at if sep is not None else self.index(part, at)
            at = start + len(part)
            found.append(self._cut(start, at))
            at += len(sep or "")
        return found

    def _three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        first, second = len(parts[0]), len(parts[0]) + len(parts[1])
        return self._cut(0, first), self._cut(first, second), self._cut(second, len(self))


def traced(text: str) -> TracedText:
    """The string itself where it is traced; else one that is a template's."""
    if isinstance(text, TracedText):
        return text
    return TracedText(text, (Span(len(text), TEMPLATE, 0),))


def piece_text(text: str, piece: int) -> TracedText:
    """A piece from outside, with all its characters where they stand."""
    return TracedText(text, (Span(len(text), piece, 0),))


def spans_of(text: str) -> tuple[Span, ...]:
    """Where the characters come from, in their order."""
    return traced(text)._spans


def plain(text: str) -> str:
    """The same characters as nothing but a `str`."""
    return "".join(str.__iter__(text)) if isinstance(text, TracedText) else text


def changed(text: str, other: str) -> str:
    """`other` in the place of `text`, where it has a character for each: the template keeps its own."""
    if not isinstance(text, TracedText):
        return other
    if len(other) != len(text):
        return outside(other, (text,))
    kept = (span if span.piece == TEMPLATE else span._replace(start=CHANGED) for span in text._spans)
    return TracedText(other, kept)


def changed_piece(text: str, piece: int) -> TracedText:
    """Text that comes from a piece without standing in it like that."""
    return TracedText(text, (Span(len(text), piece, CHANGED),))


def joined(items: Iterable[str], between: str = "") -> str:
    """The strings in a row; traced where one of them is."""
    listed = list(items)
    text = str.join(between, listed)
    if not any(isinstance(item, TracedText) for item in (between, *listed)):
        return text
    spans: list[Span] = []
    for index, item in enumerate(listed):
        if index:
            spans += traced(between)._spans
        spans += traced(item)._spans
    return TracedText(text, spans)


def outside(text: str, sources: object) -> str:
    """Text that was made of `sources` in a way that is not followed: from outside as a whole, where anything
    in them is.
    """
    pieces = list(pieces_in(sources))
    if not pieces:
        return text
    witnesses = (Span(0, piece, CHANGED) for piece in pieces[1:])
    return TracedText(text, (Span(len(text), pieces[0], CHANGED), *witnesses))


def pieces_in(value: object) -> dict[int, None]:
    """The pieces that a value's strings belong to, in their order; containers are looked through."""
    found: dict[int, None] = {}
    if isinstance(value, TracedText):
        found.update((span.piece, None) for span in value._spans if span.piece != TEMPLATE)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            found |= pieces_in(key) | pieces_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            found |= pieces_in(item)
    return found


def as_text(value: Any) -> str:
    """`str(value)`; where a container holds anything from outside, the text is from outside."""
    if isinstance(value, str):
        return value
    return outside(str(value), value)


def mapped(value: Any, trace: Callable[[str], str]) -> Any:
    """A JSON value with each string in it replaced."""
    if isinstance(value, str):
        return trace(value)
    if isinstance(value, Mapping):
        return {trace(key): mapped(item, trace) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(item, trace) for item in value]
    return value


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same spans, in as few as can be."""
    merged: list[Span] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last is not None and last.piece == span.piece and _follows(last, span):
            merged[-1] = Span(last.length + span.length, span.piece, last.start)
        elif span.length or span.piece != TEMPLATE:
            merged.append(span)
    return tuple(merged)


def _follows(last: Span, span: Span) -> bool:
    return span.piece == TEMPLATE or last.stop == span.start
