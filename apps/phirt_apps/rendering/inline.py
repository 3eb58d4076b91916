"""Inline Markdown: emphasis, code, links as styled spans, and which text has to wait for what closes it.

Knows the inline part of CommonMark, which markdown-it parses. Does not know blocks, lines or terminals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from .wrapping import Span, last_break

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_BREAK_TAG = re.compile(r"<br\s*/?>", re.IGNORECASE)
_STYLED = {"strong": "1", "em": "3", "s": "9", "link": "4"}
_MARKUP = re.compile(r"[\\`*_\[\]<&~]")
_LONGEST = 1000  # characters parsed at once
_ELSEWHERE = "\0"  # stands for what is no literal text
# What could still become the beginning of something: (pattern, for how many characters one waits).
_OPENERS = (
    (re.compile(r"\*\*(?=\S)|(?<!\w)__(?=\S)"), 320),
    (re.compile(r"`"), 200),
    (re.compile(r"\*(?=\S)|(?<!\w)_(?=\S)|~~(?=\S)|\[[^\[\]]*$|\]\([^()]*$"), 120),
)


@dataclass(frozen=True)
class Theme:
    """The SGR parameters of what is not given by Markdown itself. Only the reader's own colours are used."""

    code: str = "36"
    heading: str = "1"
    title: str = "1;4"
    faint: str = "2"
    keyword: str = "35"
    string: str = "32"
    number: str = "36"
    name: str = "33"


PLAIN = Theme(code="1", keyword="1", string="", number="", name="")  # for NO_COLOR: weight and no colour


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough")
    # Escaped characters then stay apart from text, where they would look like openers.
    return parser.disable("text_join")


def _tokens(source: str) -> list[Token]:
    [root] = _parser().parseInline(source)
    return root.children or []


def must_wait(source: str) -> bool:
    """Whether text that follows could still change how this looks, and it is worth waiting for."""
    if not _MARKUP.search(source):
        return False
    literal = "".join(token.content if token.type == "text" else _ELSEWHERE for token in _tokens(source))
    return any(len(source) <= patience and pattern.search(literal) for pattern, patience in _OPENERS)


def styled(source: str, theme: Theme, base: str = "") -> list[Span]:
    """The source of one line as spans; `<br>` is a newline in their text. `base` is their common style."""
    if not _MARKUP.search(source):
        return [Span(source, base)]
    spans: list[Span] = []
    while source:
        # Markup spans few words, and parsing takes time by the square of the length.
        end = len(source) if len(source) <= _LONGEST else last_break(source[:_LONGEST]) or _LONGEST
        spans += _parsed(source[:end], theme, base)
        source = source[end:]
    return spans


def _parsed(source: str, theme: Theme, base: str) -> list[Span]:
    spans: list[Span] = []
    styles: list[str] = []
    target = ""
    for token in _tokens(source):
        style = _combined((base, *styles))
        if token.type.endswith("_open"):
            styles.append(_STYLED.get(token.type.removesuffix("_open"), ""))
            target = "" if token.info == "auto" else str(token.attrs.get("href", target))
        elif token.type.endswith("_close"):
            styles.pop()
            if token.type == "link_close" and target:
                spans += _address(target, spans, theme)
                target = ""
        elif token.type == "code_inline":
            spans.append(Span(token.content, _combined((style, theme.code))))
        elif token.type == "image":
            spans.append(Span(token.content or "image", _combined((style, "4"))))
            spans += _address(str(token.attrs.get("src", "")), spans, theme)
        elif token.type in ("softbreak", "hardbreak"):
            spans.append(Span(" ", style))
        else:
            spans.append(Span(_BREAK_TAG.sub("\n", token.content), style))
    return spans


def _address(target: str, before: list[Span], theme: Theme) -> list[Span]:
    """Where a link leads, so that its text cannot lie about it."""
    shown = before[-1].text if before else ""
    return [] if not target or shown == target else [Span(f" ({target})", theme.faint)]


def _combined(styles: Iterable[str]) -> str:
    return ";".join(style for style in styles if style)
