"""An answer's Markdown as HTML while it is being written: what is settled once, what is still open again.

Knows CommonMark through markdown-it, with tables and struck text. Knows nothing of widgets. Whatever a model
writes is text: HTML in it is shown, and pictures that it names are not looked for.

A block settles when another one begins behind it. One that goes on and on is cut at a line, so that what is
rendered again with each piece stays small however long the answer gets: a table goes on under its header, a
code block as a code block, a list at an item. Code inside of a list or a quotation, and one long line of it,
may get longer before they are cut, since that shows.
"""

from __future__ import annotations

import itertools
import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

from phirt_apps.rendering.controls import printable

MOST_OPEN = 1200  # characters that may be rendered again and again: a few milliseconds
MOST_CODE = 8 * MOST_OPEN  # of those where code would not go on as it began
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])[ \t]")
# What stands before a fence, list and quotation marks among it, and the fence.
_FENCE = re.compile(r"((?:[ \t>]|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t]))*)(`{3,}|~{3,})")
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
            before, self._source = _cut(self._source)
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


def _cut(source: str) -> tuple[str, str]:
    """One long block as two, the second of which may go on; the first is empty where it is not cut yet."""
    tokens, lines = _PARSER.parse(source), _lines(source)
    done, last = lines[:-1], lines[-1]
    kind = tokens[0].type if len(_blocks(tokens)) == 1 else ""
    if kind in ("bullet_list_open", "ordered_list_open"):
        code = {line for begin, end in _fences(tokens) for line in range(begin + 1, end)}
        items = [i for i, line in enumerate(lines) if i and i not in code and _ITEM.match(line)]
        if items:
            return "".join(lines[: items[-1]]), "".join(lines[items[-1] :])
    if (begin := _open_fence(lines, tokens)) is not None:
        return _cut_code(lines, begin, len(source))
    if kind == "table_open" and len(done) > 2:
        return "".join(done), "".join(lines[:2]) + last
    if done:
        return "".join(done), last
    place = source.rfind(" ", 0, MOST_OPEN) + 1 or MOST_OPEN  # one long line
    return source[:place], source[place:]


def _fences(tokens: list[Token]) -> list[tuple[int, int]]:
    """The first line of each block of code in fences, and the one behind it."""
    return [(token.map[0], token.map[1]) for token in tokens if token.type == "fence" and token.map]


def _open_fence(lines: list[str], tokens: list[Token]) -> int | None:
    """The line at which a block of code begins that has no end yet."""
    fences = _fences(tokens)
    filled = max((i for i, line in enumerate(lines) if line.strip(" \t>\n")), default=0)
    if not fences or fences[-1][1] <= filled:
        return None
    begin, end = fences[-1]
    fence = _FENCE.match(lines[begin])
    closing = lines[end - 1].strip(" \t>\n")
    if fence is None or (end - 1 > begin and closing.startswith(fence[2]) and not closing.strip(fence[2][0])):
        return None
    return begin


def _cut_code(lines: list[str], begin: int, length: int) -> tuple[str, str]:
    """Lines that end in the code which begins at one of them: the code ends, and begins again."""
    done, last, opener = lines[:-1], lines[-1], lines[begin]
    fence = _FENCE.match(opener)
    assert fence is not None
    inside = re.sub(r"[^ \t>]", " ", fence[1])
    is_one_line = len(done) <= begin + 1
    if length <= MOST_CODE and (is_one_line or len(inside) > 3 or inside.strip()):
        return "", "".join(lines)
    again = (inside if ">" in inside else _bullets(len(inside))) + opener[len(fence[1]) :]
    ending = f"{inside}{fence[2]}\n"
    if is_one_line:
        place = len(last) // 2
        return "".join([*done, last[:place], "\n", ending]), again + inside + last[place:]
    return "".join([*done, ending]), again + last


def _bullets(width: int) -> str:
    """Marks of lists inside of each other whose content begins behind so many characters."""
    return "" if width < 2 else "- " * (width // 2 - 1) + "-" + " " * (1 + width % 2)
