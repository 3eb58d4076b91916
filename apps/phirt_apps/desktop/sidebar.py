"""The list of kept conversations beside the one that is open.

Knows their titles and times. Does not open or delete any; it says which one is meant.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QPushButton, QVBoxLayout, QWidget

from phirt_apps.desktop.conversations import Saved

_HERE = Qt.ShortcutContext.WidgetShortcut  # elsewhere the key deletes characters


class Sidebar(QWidget):
    """Conversations, the latest first; the open one is marked."""

    chosen = Signal(object)  # Saved
    unwanted = Signal(object)  # Saved

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.new = QPushButton("New conversation")
        self.list = QListWidget()
        self.list.setWordWrap(True)
        self.remove = QPushButton("Delete …")
        self._saved: list[Saved] = []
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.new, self.list, self.remove):
            layout.addWidget(widget)
        self.list.itemActivated.connect(self._choose)
        self.list.itemClicked.connect(self._choose)
        self.list.currentRowChanged.connect(lambda row: self.remove.setEnabled(row >= 0))
        self.remove.clicked.connect(self._unwant)
        self.remove.setEnabled(False)
        delete = QShortcut(QKeySequence(QKeySequence.StandardKey.Delete), self.list)
        delete.setContext(_HERE)
        delete.activated.connect(self._unwant)

    def show_saved(self, saved: list[Saved], current: Path | None) -> None:
        """Shows these, with the one of that path marked."""
        self._saved = saved
        self.list.clear()
        for row, one in enumerate(saved):
            when = datetime.datetime.fromtimestamp(one.changed)
            item = QListWidgetItem(f"{one.title}\n{when:%Y-%m-%d %H:%M}")
            item.setData(Qt.ItemDataRole.UserRole, row)
            self.list.addItem(item)
            if one.path == current:
                self.list.setCurrentRow(row)

    def _choose(self, item: QListWidgetItem) -> None:
        self.chosen.emit(self._saved[item.data(Qt.ItemDataRole.UserRole)])

    def _unwant(self) -> None:
        row = self.list.currentRow()
        if row >= 0:
            self.unwanted.emit(self._saved[row])
