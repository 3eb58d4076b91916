"""Puts the window and the runtime together and runs them until the window is closed.

Knows the order in which things begin and end. Does not know what the window shows.
"""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QThread, QTimer
from PySide6.QtWidgets import QApplication

from phirt_apps.desktop.window import Window
from phirt_apps.desktop.worker import Runtime, Setup
from phirt_apps.interrupts import interrupts


class Desktop:
    """The window, the runtime and its thread, ready to run; a QApplication must be there."""

    def __init__(self, setup: Setup, model: Path | None) -> None:
        self.thread = QThread()
        self.thread.setObjectName("phirt-runtime")
        self.runtime = Runtime(setup)
        self.runtime.moveToThread(self.thread)
        self.window = Window(self.runtime)
        self.thread.start()
        self.window.load(model)

    def end(self) -> None:
        """Waits for the thread, which the closed window has told to finish."""
        self.thread.quit()
        self.thread.wait()


def run(setup: Setup, model: Path | None) -> None:
    """Shows the window until it is closed. Ctrl-C closes it, as a click does."""
    application = QApplication(["phirt"])
    application.setQuitOnLastWindowClosed(False)  # what is under way comes to its end first
    desktop = Desktop(setup, model)
    desktop.window.ended.connect(application.quit)
    desktop.window.show()
    heartbeat = QTimer()  # signals of the system are seen between two lines of Python, which this makes run
    heartbeat.timeout.connect(lambda: None)
    heartbeat.start(200)
    with interrupts.patient(), interrupts.cancelling(lambda: QTimer.singleShot(0, desktop.window.close)):
        application.exec()
    desktop.end()
