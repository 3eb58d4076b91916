"""Lines of a code block in colours, each as soon as it is complete.

Knows Pygments and SGR parameters. Does not know Markdown or terminals.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .inline import Theme
from .wrapping import Span

if TYPE_CHECKING:
    from pygments.lexer import Lexer

_LANGUAGE = re.compile(r"[\w+#.-]{1,30}")
_MOST_LINES = 400  # each line costs a pass over those before it


class CodeColours:
    """Colours one code block line by line: what precedes a line decides, what follows cannot change it."""

    def __init__(self, language: str, theme: Theme) -> None:
        self._lexer = _lexer(language)
        self._theme = theme
        self._lines: list[str] = []

    def line(self, text: str) -> list[Span]:
        """The next line of the block."""
        self._lines.append(text)
        if self._lexer is None or len(self._lines) > _MOST_LINES:
            return [Span(text)]
        spans: list[Span] = []
        for kind, value in self._lexer.get_tokens("\n".join(self._lines)):
            head, newline, rest = value.rpartition("\n")
            if newline and head + rest != value:
                spans.clear()
            spans.append(Span(rest, self._style(str(kind))))
        # A lexer that changes the text (tabs, say) must not change what can be copied.
        return spans if "".join(span.text for span in spans) == text else [Span(text)]

    def _style(self, kind: str) -> str:
        theme = self._theme
        for prefix, style in (
            ("Token.Comment", theme.faint),
            ("Token.Keyword", theme.keyword),
            ("Token.Literal.String", theme.string),
            ("Token.Literal.Number", theme.number),
            ("Token.Name.Function", theme.name),
            ("Token.Name.Class", theme.name),
            ("Token.Name.Tag", theme.keyword),
        ):
            if kind.startswith(prefix):
                return style
        return ""


def _lexer(language: str) -> Lexer | None:
    if not _LANGUAGE.fullmatch(language):
        return None
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
