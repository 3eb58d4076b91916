"""Words on a terminal: broken between words at its present width, never inside one that fits a line.

Knows columns, wide characters and escape sequences for styles. Does not know Markdown.

Text is only ever appended, so nothing flickers, what is on the screen can be selected at any time, and a
resized window needs no repair: the words that follow are laid out for its new width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

_TAB = 4
_KEEPS_TOGETHER = "\u00a0\u2007\u202f"  # spaces that are there to prevent a break
_ZERO_WIDTH_SPACE = "\u200b"
# Scripts that are written without spaces and broken between any two characters.
_UNSPACED_CLASS = (
    "\u2e80-\u2fdf\u3005-\u30ff\u3100-\u312f\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60"
    "\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_UNSPACED_CLASS}]")
_UP_TO_A_BREAK = re.compile(f".*[ \t{_UNSPACED_CLASS}]", re.DOTALL)
_NOT_AT_START = frozenset(
    "、。，．！？：；）］｝」』】》〉’”ー々ゝゞヽヾ・…‥％,.!?:;)]}%ぁぃぅぇぉっゃゅょァィゥェォッャュョ"
)
_NOT_AT_END = frozenset("（［｛「『【《〈‘“([{")


def last_break(text: str) -> int:
    """Where the last word of the text begins: behind a space, or behind a character that needs none."""
    found = _UP_TO_A_BREAK.match(text)
    return found.end() if found else 0


class Span(NamedTuple):
    """A stretch of text in one style; `style` holds the parameters of an SGR sequence, such as `1;36`."""

    text: str
    style: str = ""

    def __str__(self) -> str:
        return f"\x1b[{self.style}m{self.text}\x1b[0m" if self.style and self.text else self.text


def cell_width(cluster: str) -> int:
    """The columns that one user-perceived character takes.

    Terminals disagree about joined emoji; the larger figure wins, because too early a break does no harm.
    """
    if cluster.isascii():
        return len(cluster)
    import wcwidth  # takes a moment, which most answers do not need

    return max(wcwidth.width(cluster), sum(max(0, wcwidth.wcwidth(character)) for character in cluster))


def text_width(text: str) -> int:
    """The columns that the text takes on one line."""
    if text.isascii():
        return len(text)
    return sum(map(cell_width, clusters(text)))


def clusters(text: str) -> Iterable[str]:
    """The text as what a person takes for its characters."""
    if text.isascii():
        return text
    import wcwidth

    return wcwidth.iter_graphemes(text)


def spans_width(spans: Iterable[Span]) -> int:
    """The columns that the spans take on one line."""
    return sum(text_width(span.text) for span in spans)


class WordWrapper:
    """Lays out words as they come, line by line of the source.

    `columns` is asked before each word. A word wider than a whole line is left to the terminal, which breaks
    it without a newline inside: an address stays one address when it is copied.
    """

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int]) -> None:
        self._write = write
        self._columns = columns
        self._column = 0
        self._indent: tuple[Span, ...] = ()
        self._empty = True  # nothing but a prefix stands on this line of the terminal
        self._spaces = 0
        self._word: list[Span] = []
        self._word_width = 0
        self._word_end = ""

    @property
    def column(self) -> int:
        """How far the cursor stands from the left edge."""
        return self._column

    def begin(self, prefix: Iterable[Span] = (), indent: Iterable[Span] = ()) -> None:
        """Writes the prefix of a line of the source; `indent` begins the lines it is continued on."""
        self._indent = tuple(indent)
        self._put_prefix(prefix)

    def add(self, text: str, style: str = "") -> None:
        """Adds text without newlines; its last word waits until it is known to have ended."""
        for cluster in clusters(text):
            if cluster == _ZERO_WIDTH_SPACE:
                self._end_word()
            elif cluster.isspace() and cluster not in _KEEPS_TOGETHER:
                self._end_word()
                self._spaces += _TAB if cluster == "\t" else cell_width(cluster)
            else:
                if self._breaks_before(cluster):
                    self._end_word()
                self._word.append(Span(cluster, style))
                self._word_width += cell_width(cluster)
                self._word_end = cluster

    def end_line(self) -> None:
        """Ends the line of the source."""
        self._end_word()
        self._write("\n")
        self._column, self._spaces, self._empty, self._indent = 0, 0, True, ()

    def verbatim(self, spans: Iterable[Span]) -> None:
        """Writes a line as it is, to be copied as it is; the terminal breaks it where it must."""
        self._write("".join(map(str, spans)))
        self.end_line()

    def _breaks_before(self, cluster: str) -> bool:
        if not self._word or cluster in _NOT_AT_START or self._word_end in _NOT_AT_END:
            return False
        return bool(_UNSPACED.match(cluster) or _UNSPACED.match(self._word_end))

    def _end_word(self) -> None:
        if not self._word:
            return
        width = max(1, self._columns())
        if self._column > width:  # the window has become narrower, and the terminal has broken the line anew
            self._column = (self._column - 1) % width + 1
        if not self._empty and self._column + self._spaces + self._word_width > width:
            self._write("\n")
            self._column = 0
            self._put_prefix(self._indent)
            self._spaces = 0
        self._write(" " * self._spaces + "".join(map(str, _joined(self._word))))
        self._advance(self._spaces, width)
        for span in self._word:
            self._advance(cell_width(span.text), width)
        self._word, self._word_width, self._word_end = [], 0, ""
        self._spaces, self._empty = 0, False

    def _put_prefix(self, spans: Iterable[Span]) -> None:
        spans = tuple(spans)
        self._write("".join(map(str, spans)))
        self._column = spans_width(spans)
        self._empty = True

    def _advance(self, cells: int, width: int) -> None:
        """Moves the column as a terminal does that wraps at its edge."""
        self._column += cells
        if self._column > width:
            self._column = cells if cells <= width else (self._column - 1) % width + 1


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The spans with neighbours of one style put together."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].style == span.style:
            joined[-1] = Span(joined[-1].text + span.text, span.style)
        else:
            joined.append(span)
    return joined


def in_whole_words(text: str, width: int) -> str:
    """The text with newlines where words would go over the edge; one that fits no line stays whole."""
    written: list[str] = []
    words = WordWrapper(written.append, lambda: width)
    for line in text.split("\n"):
        words.begin()
        words.add(line)
        words.end_line()
    return "".join(written).removesuffix("\n")


def wrapped(spans: Iterable[Span], width: int) -> list[list[Span]]:
    """The spans as lines of at most `width` columns; a longer word is broken."""
    lines: list[list[Span]] = []
    room = 0
    for word in _words(spans):
        wide = spans_width(word)
        if lines and wide <= room:
            lines[-1] += word
            room -= wide
            continue
        word = _without_leading_space(word)
        while spans_width(word) > width:
            head, word = _split(word, width)
            lines.append(head)
        lines.append(word)
        room = width - spans_width(word)
    return [_joined(line) for line in lines] or [[]]


def _words(spans: Iterable[Span]) -> list[list[Span]]:
    """Each word with the spaces before it."""
    words: list[list[Span]] = []
    after_space = True
    for span in spans:
        for cluster in clusters(span.text):
            space = cluster.isspace() and cluster not in _KEEPS_TOGETHER
            if not words or (space and not after_space):
                words.append([])
            words[-1].append(Span(cluster, span.style))
            after_space = space
    return words


def _without_leading_space(word: list[Span]) -> list[Span]:
    first = next((index for index, span in enumerate(word) if not span.text.isspace()), len(word))
    return word[first:]


def _split(word: list[Span], width: int) -> tuple[list[Span], list[Span]]:
    """As many characters as fit, at least one, and the rest."""
    used = count = 0
    for span in word:
        used += cell_width(span.text)
        if used > width and count:
            break
        count += 1
    return word[:count], word[count:]
