"""A Markdown table laid out for a terminal: columns as wide as they need, narrower where there is no room.

Knows rows of source text and a width. Does not know how they came.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .inline import Theme, styled
from .wrapping import Span, spans_width, wrapped

_DELIMITERS = re.compile(r"\s*+\|?\s*+:?-+:?\s*+(\|\s*+:?-+:?\s*+)*+\|?\s*+")
_BAR = re.compile(r"(?<!\\)\|")
_NARROWEST = 5  # columns below which a cell is not pressed

Cell = list[list[Span]]  # lines of spans


def is_delimiter_row(line: str) -> bool:
    """Whether this second line makes a table of the line above it."""
    return "-" in line and "|" in line and _DELIMITERS.fullmatch(line) is not None


def split_row(line: str) -> list[str]:
    """The cells of a row, without their outer bars."""
    inner = line.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.strip().replace("\\|", "|") for cell in _BAR.split(inner)]


def layout(lines: Sequence[str], width: int, theme: Theme) -> list[list[Span]]:
    """The table as lines of spans; `lines` are its source, the row of delimiters second."""
    header, delimiters, *body = map(split_row, lines)
    count = len(header)
    right = [cell.endswith(":") and not cell.startswith(":") for cell in (*delimiters, *[""] * count)][:count]
    rows = [[_cell(text, theme, theme.heading) for text in header]]
    for texts in body:
        cells = [_cell(text, theme) for text in texts[:count]]
        rows.append(cells + [[[]] for _ in range(count - len(cells))])
    widths = _column_widths([[max(map(spans_width, cell)) for cell in row] for row in rows], width)
    laid_out: list[list[Span]] = []
    for index, row in enumerate(rows):
        laid_out += _row(row, widths, right, theme)
        if index == 0:
            laid_out.append([Span("─┼─".join("─" * wide for wide in widths), theme.faint)])
    return laid_out


def _cell(text: str, theme: Theme, base: str = "") -> Cell:
    """The cell's lines: `<br>` has become a newline within a span."""
    lines: Cell = [[]]
    for span in styled(text, theme, base):
        first, *others = span.text.split("\n")
        lines[-1].append(Span(first, span.style))
        lines += [[Span(part, span.style)] for part in others]
    return lines


def _column_widths(cells: list[list[int]], width: int) -> list[int]:
    """What each column needs; the widest give way where that is more than there is."""
    widths = [max(1, *column) for column in zip(*cells, strict=True)]
    room = width - 3 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _row(row: list[Cell], widths: list[int], right: list[bool], theme: Theme) -> list[list[Span]]:
    columns = [
        [part for line in cell for part in wrapped(line, wide)]
        for cell, wide in zip(row, widths, strict=True)
    ]
    height = max(len(column) for column in columns)
    lines = []
    for index in range(height):
        line: list[Span] = []
        for number, column in enumerate(columns):
            spans = column[index] if index < len(column) else []
            blank = Span(" " * (widths[number] - spans_width(spans)))
            line += [Span(" │ ", theme.faint)] if number else []
            line += [blank, *spans] if right[number] else [*spans, blank]
        lines.append(_without_trailing_blanks(line))
    return lines


def _without_trailing_blanks(line: list[Span]) -> list[Span]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Span(line[-1].text.rstrip(), line[-1].style)] if line else []
