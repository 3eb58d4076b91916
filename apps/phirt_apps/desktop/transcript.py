"""The conversation as it is seen: questions as they were typed, answers as they are rendered, growing at the
end.

Knows HTML in pieces, some of it settled and some still open, and the document that it goes into. Does not
know where it comes from. Little is done at a time: pieces wait in a queue, and the event loop has its turn
between them, so that a long conversation that is opened does not freeze the window either.
"""

from __future__ import annotations

import collections
import html
import time
from collections.abc import Iterator

from PySide6.QtCore import QTimer, QUrl
from PySide6.QtGui import (
    QColor,
    QDesktopServices,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextFormat,
    QTextLength,
    QTextListFormat,
)
from PySide6.QtWidgets import QTextBrowser, QWidget

from phirt_apps.desktop.worker import Turn
from phirt_apps.rendering.controls import printable

_BUDGET = 0.012  # seconds of inserting before the event loop has its turn
_PIECE = 2000  # characters of a person's text at once
_QUESTION = "\0"  # among the pieces: here a question begins
_SPACE = 6  # pixels above and below a paragraph
_QUOTED = 24  # pixels to the left of a quotation
_GREY = QColor(127, 127, 127, 40)
_STYLE = f"""
p, h1, h2, h3, h4, h5, h6, ul, ol {{ margin-top: {_SPACE}px; margin-bottom: {_SPACE}px; }}
h1 {{ font-size: x-large; }} h2 {{ font-size: large; }} h3, h4, h5, h6 {{ font-size: medium; }}
code {{ font-family: monospace; }}
pre {{ font-family: monospace; background-color: rgba(127, 127, 127, 40); margin: 0px; }}
blockquote {{ margin-left: {_QUOTED}px; margin-right: 0px; }}
table {{ border-collapse: collapse; margin-top: {_SPACE}px; margin-bottom: {_SPACE}px; }}
th, td {{ border: 1px solid gray; padding: 3px 8px; }}
"""
_RULE = QTextFormat.Property.BlockTrailingHorizontalRulerWidth
_BULLETS = (
    QTextListFormat.Style.ListDisc,
    QTextListFormat.Style.ListCircle,
    QTextListFormat.Style.ListSquare,
)
_HEADING = '<p style="color: gray"><b>'
_WHO = {"user": "You", "assistant": "phirt", "system": "System", "tool": "Tool"}


class Transcript(QTextBrowser):
    """Read-only. `tail` is the end of the answer that is still changing."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setOpenLinks(False)
        self.setAcceptDrops(False)  # the window takes what is dropped, wherever that is
        self.anchorClicked.connect(_open_link)
        document = self.document()
        document.setUndoRedoEnabled(False)
        document.setDefaultStyleSheet(_STYLE)
        document.setDocumentMargin(12)
        self._settled: collections.deque[str] = collections.deque()
        self._open = ""
        self._tail: int | None = None  # where the open HTML begins in the document
        self._question = 0
        self._timer = QTimer(self, singleShot=True, interval=0)
        self._timer.timeout.connect(self._insert_some)

    def loadResource(self, kind: int, name: QUrl | str) -> None:  # noqa: N802  # Qt's name
        """Nothing that a text names is opened, neither here nor elsewhere."""
        return

    def restart(self, turns: list[Turn]) -> None:
        """Shows another conversation."""
        self._settled.clear()
        self._open, self._tail = "", None
        self.document().clear()
        for turn in turns:
            self._add_turn(turn)

    def add_question(self, text: str, media: tuple[str, ...]) -> None:
        """Shows what was asked, behind all that waits, and who answers now. `withdraw` takes it back."""
        self._put(_QUESTION)
        self._add_turn(Turn("user", text, media))
        self._put(_heading("assistant"))

    def withdraw(self) -> None:
        """Takes back the last question and what there was of its answer."""
        self._open = ""
        if _QUESTION in self._settled:  # it waits itself
            while self._settled.pop() != _QUESTION:
                pass
        else:
            self._settled.clear()
            self._tail = self._question
        self._drop_tail()

    def add(self, settled: list[str], open_html: str) -> None:
        """The answer goes on: HTML that stays, then HTML that the next call takes the place of."""
        for piece in settled:
            self._put(piece)
        self._open = open_html
        self._timer.start()

    def _add_turn(self, turn: Turn) -> None:
        self._put(_heading(turn.role))
        if turn.media:
            self._put(f"<p><i>{html.escape(' · '.join(turn.media))}</i></p>")
        if turn.html:
            for piece in turn.html:
                self._put(piece)
            return
        for piece in _pieces(printable(turn.text)):
            self._put(f'<p style="white-space: pre-wrap">{html.escape(piece)}</p>')

    def _put(self, piece: str) -> None:
        self._settled.append(piece)
        if not self._timer.isActive():
            self._timer.start()

    def _insert_some(self) -> None:
        begin = time.perf_counter()
        bar = self.verticalScrollBar()
        follows = bar.value() >= bar.maximum() - 4  # a person who reads further up is left there
        self._drop_tail()
        while self._settled and time.perf_counter() - begin < _BUDGET:
            piece = self._settled.popleft()
            if piece == _QUESTION:
                self._question, follows = self.document().characterCount() - 1, True
            else:
                self._insert(piece)
        if self._settled:
            self._timer.start()
        elif self._open:
            self._tail = self.document().characterCount() - 1
            self._insert(self._open)
        if follows:
            bar.setValue(bar.maximum())

    def _drop_tail(self) -> None:
        if self._tail is None:
            return
        cursor = QTextCursor(self.document())
        cursor.setPosition(self._tail)
        cursor.movePosition(QTextCursor.MoveOperation.End, QTextCursor.MoveMode.KeepAnchor)
        cursor.removeSelectedText()
        self._tail = None

    def _insert(self, piece: str) -> None:
        cursor = QTextCursor(self.document())
        cursor.beginEditBlock()
        cursor.movePosition(QTextCursor.MoveOperation.End)
        block, items = cursor.block(), cursor.currentList()
        is_taken = block.length() > 1 or items is not None
        begins_list = piece.startswith(("<ul", "<ol"))
        goes_on = items is not None and piece.startswith("<ul") and items.format().style() in _BULLETS
        if is_taken and (goes_on or not begins_list or items is not None):
            cursor.insertBlock()
        # A list begins a block of its own by itself, and one that was cut goes on in the old one.
        if not goes_on and not (begins_list and is_taken and items is None):
            cursor.setBlockFormat(_first_block(piece))
        cursor.setCharFormat(QTextCharFormat())
        if piece.startswith("<hr"):
            cursor.insertText("\u200b")  # the format of an empty block may go when what follows it is removed
        else:
            cursor.insertHtml(piece)
        cursor.endEditBlock()


def _first_block(piece: str) -> QTextBlockFormat:
    """How the first block of the HTML is set: what is inserted takes over the block that it begins in, and
    with it the format that stands there.
    """
    block = QTextBlockFormat()
    if piece.startswith("<pre"):
        block.setBackground(_GREY)
        block.setNonBreakableLines(True)
        return block
    block.setTopMargin(_SPACE)
    block.setBottomMargin(_SPACE)
    if piece.startswith("<blockquote"):
        block.setLeftMargin(_QUOTED)
    if piece.startswith("<hr"):
        width = QTextLength(QTextLength.Type.PercentageLength, 100)
        block.setProperty(_RULE, width)
    if piece.startswith(_HEADING):
        block.setTopMargin(3 * _SPACE)
    return block


def _pieces(text: str) -> Iterator[str]:
    """A text in parts of at most _PIECE characters, cut at the end of a line, or else of a word."""
    begin = 0
    while len(text) - begin > _PIECE:
        stop = begin + _PIECE
        end = text.rfind("\n", begin, stop) + 1 or text.rfind(" ", begin, stop) + 1 or stop
        yield text[begin:end].removesuffix("\n")  # a paragraph ends a line by itself
        begin = end
    if begin < len(text):
        yield text[begin:]


def _heading(role: str) -> str:
    return f"{_HEADING}{_WHO[role]}</b></p>"


def _open_link(address: QUrl) -> None:
    """A link that a person clicks goes to the browser; other kinds of address go nowhere."""
    if address.scheme() in ("http", "https"):
        QDesktopServices.openUrl(address)
