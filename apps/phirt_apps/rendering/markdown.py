"""Markdown on a terminal while it is being written: each line appears word by word and is never redrawn.

Knows the lines of Markdown: headings, lists, quotes, code, tables. Inline markup is `inline`'s, widths are
`wrapping`'s.

A line of the source stays a line of its own, as a person typed it: poems and addresses keep their shape. What
cannot be told yet waits: a word until it ends, emphasis until it closes, a table until its last row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .code import CodeColours
from .controls import printable
from .inline import Theme, must_wait, styled
from .table import is_delimiter_row, layout
from .wrapping import Span, WordWrapper, last_break

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})([^`]*)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+|$)")
_CLOSING_HASHES = re.compile(r"(?<![ \t])[ \t]+#+[ \t]*+$")
_RULE = re.compile(r" {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})")
_ITEM = re.compile(r"([ \t]*)(?:[-*+]|(\d{1,9}[.)]))(?:[ \t]+|$)")
_QUOTE = re.compile(r" {0,3}> ?")
_INDENT = re.compile(r"[ \t]*")
_ROW = re.compile(r"[ \t]*\|")
# Beginnings of a line that may still become one thing or another.
_UNDECIDED = re.compile(
    r"(?: {0,3}> ?)*+[ \t]*+(?:[-*_+ \t]*|\#{1,6}|\d{1,9}[.)]?|[`~]{1,2}|(?:`{3,}|~{3,})[^`]*|\|.*)"
)
_RULE_WIDTH = 60


@dataclass
class _Fence:
    """A code block that is open: what closes it, and what stands to the left of its lines in the source."""

    marker: str
    indent: int
    quotes: int
    colours: CodeColours

    def closes(self, line: str) -> bool:
        """Whether the line ends the block."""
        mark = line.strip()
        return mark.startswith(self.marker) and not mark.strip(self.marker[0])


class MarkdownDisplay:
    """Writes an answer piece by piece. `columns` tells the terminal's present width."""

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int], theme: Theme) -> None:
        self._write = write
        self._columns = columns
        self._theme = theme
        self._out: list[str] = []
        self._words = WordWrapper(self._out.append, columns)
        self._source = ""  # of the present line, as far as it has not been written
        self._style: str | None = None  # of the present line's text, once it is known what the line is
        self._fence: _Fence | None = None
        self._table: list[str] = []
        self._fresh = False  # nothing of that text has been written
        self._quotes = 0  # marks of a quotation before it
        self._in_list = False
        self._after_text = False
        self._blank_lines = 0
        self._anything = False
        self._note = ""

    def write(self, piece: str) -> None:
        """Takes a piece of the answer and writes what is certain by now."""
        *complete, partial = (self._source + printable(piece)).split("\n")
        for line in complete:
            self._source = line
            self._end_line()
        self._source = partial
        self._go_on()
        self._flush()

    def finish(self) -> None:
        """Writes what is left, and ends the line."""
        if self._source or self._style is not None:
            self._end_line()
        self._end_table()
        self._flush()

    def break_line(self) -> None:
        """Leaves the cursor at the left edge, so that something else can be written in between."""
        self._erase_note()
        if self._words.column:
            self._words.end_line()
        self._flush()

    def _flush(self) -> None:
        if self._out:
            self._write("".join(self._out))
            self._out.clear()

    def _end_line(self) -> None:
        """The present line of the source is complete."""
        line = self._source
        if self._fence is not None:
            self._code_line(self._fence, line)
        elif self._style is None and not line.strip():
            self._end_table()
            self._blank_lines += 1
            self._after_text = False
        elif self._style is not None or not self._take_block(line):
            if self._style is None:
                self._begin_text()
            fence = _FENCE.fullmatch(self._source) if self._fresh else None
            if fence is not None:  # behind the mark of an item or a quote
                self._open_fence(fence)
            else:
                self._text(self._source)
                self._words.end_line()
            self._after_text = True
        self._source, self._style = "", None

    def _go_on(self) -> None:
        """The present line goes on: writes the words that nothing can change any more."""
        if self._fence is not None or not self._source:
            return
        if self._style is None:
            if _UNDECIDED.fullmatch(self._source) or self._is_indented_code(self._source):
                return
            self._begin_text()
        if self._style:  # a heading: hashes at its end are no part of it
            return
        ready = last_break(self._source)
        if ready and not must_wait(self._source[:ready]):
            self._text(self._source[:ready])
            self._source = self._source[ready:]
            self._fresh = False

    def _take_block(self, line: str) -> bool:
        """Writes the line, which is complete, if it is a part of something other than text."""
        if self._table and (_ROW.match(line) if len(self._table) > 1 else is_delimiter_row(line)):
            self._table.append(line)
            self._show_note(f"a table of {len(self._table) - 2} rows …")
        elif _ROW.match(line):
            self._end_table()
            self._table = [line]
        elif fence := _FENCE.fullmatch(line):
            self._begin()
            self._words.begin()
            self._quotes = 0
            self._open_fence(fence)
        elif _RULE.fullmatch(line):
            self._begin()
            self._in_list = False
            self._words.verbatim([Span("─" * min(self._columns(), _RULE_WIDTH), self._theme.faint)])
        elif self._is_indented_code(line):
            self._begin()
            self._words.verbatim([Span(line, self._theme.code)])
        else:
            return False
        self._after_text = False
        return True

    def _is_indented_code(self, line: str) -> bool:
        if self._in_list or self._after_text:
            return False
        return line.startswith(("    ", "\t")) and bool(line.strip())

    def _open_fence(self, found: re.Match[str]) -> None:
        indent, marker, info = found.groups()
        language = (info.split() or [""])[0].lower()
        column = self._words.column if not self._quotes else 0
        self._fence = _Fence(marker, len(indent) + column, self._quotes, CodeColours(language, self._theme))
        self._words.verbatim([Span(found[0].strip(), self._theme.faint)])

    def _code_line(self, fence: _Fence, line: str) -> None:
        for _ in range(fence.quotes):
            line = line[found.end() :] if (found := _QUOTE.match(line)) else line
        bars = [Span("│ " * fence.quotes, self._theme.faint)] if fence.quotes else []
        if fence.closes(line):
            self._words.verbatim([*bars, Span(line.strip(), self._theme.faint)])
            self._fence = None
            return
        indent = min(fence.indent, len(line) - len(line.lstrip(" ")))
        self._words.verbatim([*bars, *fence.colours.line(line[indent:])])

    def _begin(self) -> None:
        """Before anything is written: what came before is complete."""
        self._end_table()
        self._write_blank_lines()

    def _write_blank_lines(self) -> None:
        """Those between what is written and what follows; none at either end of the answer."""
        if self._anything:
            self._out.append("\n" * self._blank_lines)
        self._blank_lines, self._anything = 0, True

    def _begin_text(self) -> None:
        """Reads the mark of a heading, an item or a quote, and writes what stands for it."""
        self._begin()
        prefix: list[Span] = []
        while quote := _QUOTE.match(self._source):
            prefix.append(Span("│ ", self._theme.faint))
            self._source = self._source[quote.end() :]
        self._quotes = len(prefix)
        indent = list(prefix)
        self._style, self._fresh = "", True
        if heading := _HEADING.match(self._source):
            self._source = self._source[heading.end() :]
            self._style = self._theme.title if len(heading[1]) == 1 else self._theme.heading
            self._in_list = False
        elif (item := _ITEM.match(self._source)) and (item[2] or not _RULE.fullmatch(self._source)):
            mark = f"{item[1]}{item[2] or '•'} ".expandtabs(4)
            prefix.append(Span(mark))
            indent.append(Span(" " * len(mark)))
            self._source = self._source[item.end() :]
            self._in_list = True
        elif margin := _INDENT.match(self._source):
            spaces = Span(margin[0].expandtabs(4))
            prefix.append(spaces)
            indent.append(spaces)
            self._source = self._source[margin.end() :]
            self._in_list = self._in_list and bool(margin[0])
        self._words.begin(prefix, indent)

    def _text(self, source: str) -> None:
        if self._style:
            source = _CLOSING_HASHES.sub("", source)
        for span in styled(source, self._theme, self._style or ""):
            first, *others = span.text.split("\n")
            self._words.add(first, span.style)
            for part in others:
                self._words.end_line()
                self._words.add(part, span.style)

    def _end_table(self) -> None:
        """Writes the rows that were gathered: as a table, or as text where only one looked like a row."""
        lines, self._table = self._table, []
        if not lines:
            return
        self._erase_note()
        self._write_blank_lines()
        if len(lines) == 1:
            self._words.begin()
            for span in styled(lines[0], self._theme):
                self._words.add(span.text.replace("\n", " "), span.style)
            self._words.end_line()
            return
        for spans in layout(lines, self._columns(), self._theme):
            self._words.verbatim(spans)

    def _show_note(self, note: str) -> None:
        """A faint word of what is being gathered, for as long as nothing else is written."""
        self._erase_note()
        self._write_blank_lines()
        self._note = note
        self._out.append(str(Span(note, self._theme.faint)))

    def _erase_note(self) -> None:
        if self._note:
            self._note = ""
            self._out.append("\r\x1b[K")
