"""A Qt window that asks about a picture: a thread reads the answer, the window never waits.

python apps/examples/ask_qt.py apps/examples/shoes.jpg "What is this?"        # pip install PySide6-Essentials
"""

import sys
import threading

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QApplication, QPlainTextEdit

import phirt


class Answer(QPlainTextEdit):
    """Shows what its thread reads; signals carry it over."""

    written = Signal(str)

    def __init__(self, picture: str, question: str) -> None:
        super().__init__(readOnly=True)
        self.written.connect(self.insertPlainText)
        self.stop = threading.Event()
        self.reader = threading.Thread(target=self.read, args=(picture, question))
        self.reader.start()

    def read(self, picture: str, question: str) -> None:
        """Runs in the thread."""
        try:
            with phirt.load() as model:
                for piece in model.chat().send(question, images=[picture], cancel=self.stop):
                    self.written.emit(piece)
        except phirt.PhirtError as error:
            self.written.emit(f"\n{error}")


if __name__ == "__main__":
    application = QApplication(sys.argv)
    window = Answer(*sys.argv[1:3])
    window.show()
    application.exec()
    window.stop.set()  # the answer ends within a step
    window.reader.join()
