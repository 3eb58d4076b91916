"""The window with nano behind it, on a screen that nobody sees; skips where Qt is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("PySide6.QtWidgets", reason="needs the extra desktop (PySide6)", exc_type=ImportError)

import shiboken6
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from phirt_apps.desktop.app import Desktop
from phirt_apps.desktop.worker import Setup

DEADLINE = 120_000  # milliseconds after which a test has failed; nothing is measured with it


def until(condition: Callable[[], bool]) -> None:
    """Runs the event loop until the condition holds; true already is true."""
    late: list[bool] = []
    guard = QTimer(singleShot=True)
    guard.timeout.connect(lambda: late.append(True))
    guard.start(DEADLINE)
    while not condition():
        assert not late, "the condition never held"
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)


def wait_idle(desktop: Desktop) -> None:
    """Until the window has seen the end of its job, and all that came before it."""
    until(lambda: not desktop.window._busy)


def wait_for(signal: Any) -> tuple[Any, ...]:
    """Runs the event loop until the signal comes; what came with it."""
    got: list[tuple[Any, ...]] = []

    def arrive(*values: Any) -> None:
        got.append(values)

    signal.connect(arrive)
    until(lambda: bool(got))
    signal.disconnect(arrive)
    return got[0]


@pytest.fixture(scope="session")
def application() -> QApplication:
    """The one of this process."""
    return QApplication.instance() or QApplication(["phirt"])


Open = Callable[..., Desktop]


@pytest.fixture
def open_desktop(application: QApplication, tmp_path: Path, nano: Path) -> Iterator[Open]:
    """Opens windows with a loaded model; those that a test leaves open are closed."""
    opened: list[Desktop] = []

    def open_one(model: Path | None = nano, **settings: Any) -> Desktop:
        setup = Setup(tmp_path / "kept", {"max_new_tokens": 100, **settings})
        desktop = Desktop(setup, model)
        opened.append(desktop)
        desktop.window.show()
        wait_idle(desktop)
        return desktop

    yield open_one
    for desktop in opened:
        if not desktop.thread.isFinished():
            close(desktop)
        # Here and now: left to the collector, widgets could go in the thread of the next window's runtime.
        shiboken6.delete(desktop.window)
        shiboken6.delete(desktop.runtime)


def close(desktop: Desktop) -> None:
    """Closes a window and waits for its end."""
    ended: list[bool] = []
    desktop.window.ended.connect(lambda: ended.append(True))
    desktop.window.close()
    until(lambda: bool(ended))
    desktop.end()


def ask(desktop: Desktop, text: str) -> None:
    """Types and sends a question, and waits for its answer."""
    desktop.window.composer.editor.setPlainText(text)
    desktop.window.send()
    wait_idle(desktop)


def drain(desktop: Desktop) -> None:
    """Lets the transcript insert all that waits."""
    while desktop.window.transcript._settled:
        desktop.window.transcript._insert_some()
    desktop.window.transcript._insert_some()
