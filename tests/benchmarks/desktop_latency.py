"""How long the window of `phirt desktop` is ever held up, while answers of 2,000 tokens come in.

    QT_QPA_PLATFORM=offscreen python tests/benchmarks/desktop_latency.py [BUNDLE] [--tokens 2000]

A timer that is due every 5 ms tells how late the event loop is; the worst of each phase is shown, beside the
most that the window's thread has computed between two ticks: what is beyond that, other programs had. First
the window opens and its model is loaded, then it answers a question without coming to an end, then it opens
that conversation again. Then the same for Markdown of 8,000 characters each, as fast as it can be shown:
prose, a list, a table, code. Exit status 1 where an answer held the event loop up for more than 50 ms.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from phirt_apps.desktop.app import Desktop
from phirt_apps.desktop.markdown import AnswerMarkdown
from phirt_apps.desktop.worker import Setup

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0.050
EVERY = 5  # milliseconds
PIECE = 6  # characters
KINDS = {
    "prose": "the sea **is** wide and `blue`, and so is the sky; " * 160,
    "list": "- an item of *things* to see\n" * 275,
    "table": "| a | b | c |\n|---|---|---|\n" + "| one | two **x** | three |\n" * 290,
    "code": "```python\n" + "    x = compute(y, z)  # why\n" * 275 + "```\n",
}


class Beat:
    """The lateness of a timer, the worst since it was last asked."""

    def __init__(self) -> None:
        self._worst = self._work = 0.0
        self._last, self._computed = time.perf_counter(), time.thread_time()
        self.work = 0.0  # of the phase that `worst` was last asked about
        self._timer = QTimer()
        self._timer.timeout.connect(self._tick)
        self._timer.start(EVERY)

    def worst(self) -> float:
        """Seconds beyond the interval."""
        worst, self.work = self._worst, self._work
        self._worst = self._work = 0.0
        return worst

    def _tick(self) -> None:
        now = time.perf_counter()
        self._worst = max(self._worst, now - self._last - EVERY / 1000)
        computed = time.thread_time()
        self._work = max(self._work, computed - self._computed)
        self._last, self._computed = now, computed


def shown(late: float, beat: Beat) -> str:
    """Lateness, and what the window's thread did of it."""
    return f"{1000 * late:.0f} ms late at most, {1000 * beat.work:.0f} ms of work at most"


def until(signal: Any) -> None:
    """Runs the event loop until the signal comes."""
    loop = QEventLoop()
    signal.connect(loop.quit)
    loop.exec()
    signal.disconnect(loop.quit)


def rest(seconds: float) -> None:
    """Runs the event loop for a while."""
    loop = QEventLoop()
    QTimer.singleShot(round(1000 * seconds), loop.quit)
    loop.exec()


def main() -> int:
    """Runs all phases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", nargs="?", type=Path, default=ROOT / "tests" / "bundles" / "nano")
    parser.add_argument("--tokens", type=int, default=2000)
    arguments = parser.parse_args()
    application, ends, worst = QApplication([]), [], 0.0

    def endless(logits: Any, ids: Any) -> Any:
        logits = np.array(logits)
        logits[..., ends] = -np.inf
        return logits

    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "max_new_tokens": arguments.tokens,
            "logits_processors": (endless,),
            "temperature": 1.0,
            "seed": 1,
        }
        beat = Beat()
        desktop = Desktop(Setup(Path(folder), settings), arguments.bundle)
        window, runtime = desktop.window, desktop.runtime
        window.show()
        until(runtime.idle)
        ends = list(runtime._model.manifest.tokens.eos)
        print(f"opening and loading: {shown(beat.worst(), beat)}")
        rest(0.5)
        beat.worst()
        window.composer.editor.setPlainText("Tell me about the sea.")
        begin = time.perf_counter()
        window.send()
        until(runtime.idle)
        rest(0.5)
        late = beat.worst()
        worst = max(worst, late)
        print(f"{window.figures.text()}, {time.perf_counter() - begin:.1f} s: {shown(late, beat)}")
        window.sidebar.list.itemClicked.emit(window.sidebar.list.item(0))
        until(runtime.idle)
        rest(1)
        print(f"opening that conversation: {shown(beat.worst(), beat)}")
        for kind, text in KINDS.items():
            worst = max(worst, markdown(window, beat, kind, text))
        window.close()
        until(window.ended)
        desktop.end()
    print(f"worst during answers: {1000 * worst:.0f} ms, allowed: {1000 * LIMIT:.0f} ms")
    del application
    return int(worst > LIMIT)


def markdown(window: Any, beat: Beat, kind: str, text: str) -> float:
    """Shows one kind of Markdown as it grows, every piece on its own."""
    window.transcript.add_question(kind, ())
    rest(0.1)
    beat.worst()
    answer = AnswerMarkdown()
    for start in range(0, len(text), PIECE):
        answer.add(text[start : start + PIECE])
        window.transcript.add(answer.settled(), answer.open)
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)
    window.transcript.add(answer.end(), "")
    rest(0.3)
    late = beat.worst()
    print(f"{kind}, {len(text):,} characters, each piece of {PIECE} shown: {shown(late, beat)}")
    return late


if __name__ == "__main__":
    os.environ.setdefault("PHIRT_CACHE", "off")
    sys.exit(main())
