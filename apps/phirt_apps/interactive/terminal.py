"""The terminal of a session between one prompt and the next: it shows nothing that is typed, and keeps it.

Knows terminal modes and job control. Does not know what keys mean. Elsewhere than on a POSIX terminal it does
nothing: a Windows console shows keys only while they are read.

Whatever ends the session (its end, an exception, a signal, Ctrl-Z for a while), the modes are put back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, TextIO

from phirt_apps.interrupts import interrupts

_PASTE_IN_BRACKETS, _PASTE_AS_TYPED = b"\x1b[?2004h", b"\x1b[?2004l"
_SHOW_CURSOR = b"\x1b[?25h\x1b[0m"
_LOCAL_FLAGS, _INPUT_FLAGS = 3, 0  # places in what tcgetattr returns


def session_terminal() -> QuietTerminal | None:
    """The terminal that a person sits at; None where there is none, or one that can only show lines."""
    if not sys.stdin.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    for screen in (sys.stderr, sys.stdout):  # stdout may go to a file
        if screen.isatty():
            return QuietTerminal(sys.stdin, screen)
    return None


class QuietTerminal:
    """While entered, keys typed on `keyboard` are neither shown nor lost: whoever reads next gets them.

    `screen` is a stream to the same terminal, for escape sequences. Ctrl-C and Ctrl-Z work as ever.
    """

    def __init__(self, keyboard: TextIO, screen: TextIO) -> None:
        self.keyboard = keyboard
        self.screen = screen
        self._usual: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> QuietTerminal:
        if sys.platform == "win32":
            return self
        import termios

        with contextlib.suppress(termios.error):  # no terminal
            self._usual = termios.tcgetattr(self.keyboard.fileno())
        if self._usual is not None:
            if threading.current_thread() is threading.main_thread():
                self._handlers = {signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._on_stop)}
                self._handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._on_continue)
            interrupts.before_leaving = self.restore
            self.quiet()
        return self

    def __exit__(self, *error: object) -> None:
        if self._usual is None:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        interrupts.before_leaving = None
        self.restore()
        self._usual = None

    def quiet(self) -> None:
        """Keys are no longer shown, and a pasted text keeps its beginning and its end."""
        if sys.platform == "win32" or self._usual is None:
            return
        import termios

        mode = [*self._usual]
        # Ctrl-C shall not throw away what the screen has not shown and what was typed before it (NOFLSH).
        mode[_LOCAL_FLAGS] = mode[_LOCAL_FLAGS] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
        mode[_INPUT_FLAGS] &= ~termios.ICRNL  # Enter stays apart from Ctrl-J
        self._set(mode, _PASTE_IN_BRACKETS)

    def restore(self) -> None:
        """The modes that the terminal had before."""
        if self._usual is not None:
            self._set(self._usual, _PASTE_AS_TYPED + _SHOW_CURSOR)

    def _set(self, mode: list[Any], sequence: bytes) -> None:
        if sys.platform == "win32":
            return
        import termios

        # A terminal that has been closed needs no modes.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.keyboard.fileno(), termios.TCSANOW, mode)
        with contextlib.suppress(OSError):
            os.write(self.screen.fileno(), sequence)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: stops as a program would that has no handler, and goes on from here."""
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._on_stop)
        self.quiet()

    def _on_continue(self, number: int, frame: FrameType | None) -> None:
        """After a stop that could not be noticed, the shell has set modes of its own."""
        self.quiet()
