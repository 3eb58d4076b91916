"""Where a question is put together: its text, and the pictures and recordings that go with it.

Knows keys, the clipboard, and what lies in attachments. Does not know who answers.
"""

from __future__ import annotations

from PySide6.QtCore import QBuffer, QIODevice, QMimeData, Qt, Signal
from PySide6.QtGui import QImage, QKeyEvent
from PySide6.QtWidgets import QHBoxLayout, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget

from phirt_apps.desktop import attachments
from phirt_apps.desktop.attachments import Attachment

_ROWS = 4


class Editor(QPlainTextEdit):
    """The text. Enter sends it, Shift with Enter begins a new line."""

    sent = Signal()
    pasted = Signal(object)  # QMimeData with a picture or files

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAcceptDrops(False)  # the window takes what is dropped
        self.setPlaceholderText("Ask something. Drop a picture or a recording anywhere.")
        self.setFixedHeight(self.fontMetrics().lineSpacing() * _ROWS + 12)
        self.setTabChangesFocus(True)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802  # Qt's name
        """Tells Enter from a new line."""
        is_enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if is_enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.sent.emit()
        else:
            super().keyPressEvent(event)

    def canInsertFromMimeData(self, source: QMimeData) -> bool:  # noqa: N802  # Qt's name
        """Pictures and files may be pasted, too."""
        return source.hasImage() or source.hasUrls() or super().canInsertFromMimeData(source)

    def insertFromMimeData(self, source: QMimeData) -> None:  # noqa: N802  # Qt's name
        """Text goes into the text, and so does a copied address; files and pictures become attachments."""
        is_text = source.hasText() and not any(url.isLocalFile() for url in source.urls())
        if (source.hasUrls() or source.hasImage()) and not is_text:
            self.pasted.emit(source)
        else:
            super().insertFromMimeData(source)


class Composer(QWidget):
    """The text and its attachments, each of which a click takes away again."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.editor = Editor(self)
        self.attached: list[Attachment] = []
        self._buttons: list[QPushButton] = []
        self._row = QHBoxLayout()
        self._row.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(self._row)
        layout.addWidget(self.editor)

    @property
    def text(self) -> str:
        """What is typed."""
        return self.editor.toPlainText().strip()

    def attach(self, attachment: Attachment) -> None:
        """Adds one, behind the others."""
        self.attached.append(attachment)
        self._show()

    def put(self, text: str, attached: tuple[Attachment, ...]) -> None:
        """A question that is to be sent again, before what was typed since."""
        since = self.editor.toPlainText()
        self.editor.setPlainText(f"{text}\n{since}" if since else text)
        self.attached = [*attached, *self.attached]
        self._show()

    def clear(self) -> None:
        """The next question."""
        self.editor.clear()
        self.attached = []
        self._show()

    def _show(self) -> None:
        for button in self._buttons:
            button.hide()
            button.deleteLater()
        self._buttons = []
        for index, attachment in enumerate(self.attached):
            button = QPushButton(f"{attachment.label.replace('&', '&&')}  ✕", self)
            button.setToolTip("Take it away")
            button.clicked.connect(lambda _=False, one=attachment: self._detach(one))
            self._row.insertWidget(index, button)
            self._buttons.append(button)

    def _detach(self, attachment: Attachment) -> None:
        self.attached.remove(attachment)
        self._show()


def picture_of(mime: QMimeData) -> Attachment | None:
    """The picture in dropped or pasted data; None where there is none."""
    image = mime.imageData()
    if not isinstance(image, QImage) or image.isNull():
        return None
    buffer = QBuffer()
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.save(buffer, "BMP")  # type: ignore[call-overload]  # compressing a large one would take seconds
    return attachments.of_picture(bytes(buffer.data().data()))
