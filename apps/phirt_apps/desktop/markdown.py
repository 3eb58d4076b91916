"""An answer's Markdown as HTML while it is being written: what is settled once, what is still open again.

Knows CommonMark through markdown-it, with tables and struck text. Knows nothing of widgets. Whatever a model
writes is text: HTML in it is shown, and pictures that it names are not looked for.

A block settles when another one begins behind it. One that goes on and on is cut at a line, so that what is
rendered again with each piece stays small however long the answer gets: a table goes on under its header, a
code block as a code block, a list at an item.
"""

from __future__ import annotations

import itertools
import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

from phirt_apps.rendering.controls import printable

MOST_OPEN = 1200  # characters that may be rendered again and again: a few milliseconds
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])[ \t]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_PARSER = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
_PARSER.disable("image")


def whole(text: str) -> list[str]:
    """A finished answer as pieces of HTML, none of them long."""
    answer = AnswerMarkdown()
    answer.add(text)
    return answer.end()


class AnswerMarkdown:
    """One answer. `add` what comes; `settled` gives HTML that stays, each piece once; `open` is the rest."""

    def __init__(self) -> None:
        self._source = ""
        self._settled: list[str] = []
        self.open = ""

    def add(self, text: str) -> None:
        """Takes the next piece of the answer; long ones in several steps."""
        text = printable(text).replace("\r", "")
        for start in range(0, len(text), MOST_OPEN):
            self._source += text[start : start + MOST_OPEN]
            self._settle()

    def settled(self) -> list[str]:
        """The HTML of what has settled since the last call."""
        pieces, self._settled = self._settled, []
        return pieces

    def end(self) -> list[str]:
        """The HTML of all that was not given yet: the answer is whole."""
        self._keep(self.open)
        self._source = self.open = ""
        return self.settled()

    def _settle(self) -> None:
        tokens = _PARSER.parse(self._source)
        blocks = _blocks(tokens)
        complete = self._source.count("\n")
        # What a line is can change until it ends: `1` may yet become an item of the list before it.
        while len(blocks) > 1 and _first_line(tokens[blocks[-1]]) >= complete:
            blocks.pop()
        if len(blocks) > 1:
            lines = _lines(self._source)
            for begin, end in itertools.pairwise(blocks):
                self._keep(_html(tokens[begin:end]))
            self._source = "".join(lines[_first_line(tokens[blocks[-1]]) :])
            tokens = tokens[blocks[-1] :]
        if len(self._source) > MOST_OPEN and tokens:
            before, self._source = _cut(self._source, tokens[0].type if len(_blocks(tokens)) == 1 else "")
            self._keep(_html(_PARSER.parse(before)))
            tokens = _PARSER.parse(self._source)
        self.open = _html(tokens)

    def _keep(self, html: str) -> None:
        if html:
            self._settled.append(html)


def _blocks(tokens: list[Token]) -> list[int]:
    """Where each block of the document begins among the tokens."""
    return [index for index, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]


def _lines(source: str) -> list[str]:
    """As Markdown counts them, with their ends; other characters than this one end none."""
    return re.findall(r"[^\n]*\n|[^\n]+", source)


def _first_line(token: Token) -> int:
    assert token.map is not None  # every block has its lines
    return int(token.map[0])


def _html(tokens: list[Token]) -> str:
    rendered = str(_PARSER.renderer.render(tokens, _PARSER.options, {}))
    return rendered.replace("\n</code></pre>", "</code></pre>")  # the last line's end is no line of its own


def _cut(source: str, kind: str) -> tuple[str, str]:
    """One long block as two, the second of which may go on."""
    lines = _lines(source)
    done, last = lines[:-1], lines[-1]
    if kind == "fence" and len(done) > 1 and (fence := _FENCE.match(source)):
        return "".join([*done, fence[1], "\n"]), lines[0] + last
    if kind == "table_open" and len(done) > 2:
        return "".join(done), "".join(lines[:2]) + last
    if kind in ("bullet_list_open", "ordered_list_open"):
        items = [index for index, line in enumerate(lines) if index and _ITEM.match(line)]
        if items:
            return "".join(lines[: items[-1]]), "".join(lines[items[-1] :])
    if done:
        return "".join(done), last
    place = source.rfind(" ", 0, MOST_OPEN) + 1 or MOST_OPEN  # one long line
    return source[:place], source[place:]
