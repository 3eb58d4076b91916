"""Ctrl-C and its kin (SIGTERM, SIGHUP), from the first moment of the process to its last.

Knows signals, and at which stage the process is. Does not know commands. Imported before everything else, so
it imports next to nothing.

    starting, ending   nothing is begun, or all is done: the process leaves at once
    running            the first signal unwinds the command as an exception; native code that does not heed it
                       within GRACE_SECONDS is left behind. A second one leaves at once
    cancelling         as before, but the first signal calls a function instead of raising
    patient            as before, but a command that saves its work has all the time that it needs
    session            Ctrl-C may come any number of times: cancels, or raises KeyboardInterrupt

While a module is imported nothing is raised: a native module that sees an exception while it is set up
reports another one, or crashes. The process leaves at once; a session waits for the end of the import. An
exception can also be lost in a callback: `interrupts.status` tells that there was a signal all the same.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

GRACE_SECONDS = 3.0
_REPEAT_SECONDS = 0.02


class Interrupts:
    """What a signal does now. There is one for the process: `interrupts`."""

    def __init__(self) -> None:
        self._running = False
        self._received: int | None = None
        self._display = False
        self.modes: dict[str, Any] = {}  # set by `_Mode`
        self.before_leaving: Callable[[], None] | None = None  # puts a terminal's modes back

    @property
    def status(self) -> int | None:
        """The exit status that tells of the signal (130 for Ctrl-C); None where none has come."""
        return None if self._received is None else 128 + self._received

    def install(self) -> None:
        """Takes the signals over, but for those that the process was told to ignore (nohup, `&`)."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last one is not known on Windows
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        sys.unraisablehook = self._on_unraisable

    def begin(self) -> None:
        """The command begins: from here on a signal unwinds it."""
        self._running = True

    def end(self) -> None:
        """The command is over: from here on there is nothing to unwind."""
        self._running = False

    def cancelling(self, cancel: Callable[[], None]) -> _Mode:
        """A block in which the first signal calls `cancel`."""
        return _Mode(self, cancel=cancel)

    def patient(self) -> _Mode:
        """A block of work that saves itself when it is interrupted, however long that takes."""
        return _Mode(self, patient=True)

    def session(self) -> _Mode:
        """A block in which Ctrl-C is a key as any other."""
        return _Mode(self, session=True)

    def displays(self, shown: bool) -> None:
        """A spinner or bar has been put on the terminal, or taken away."""
        self._display = shown

    def leave(self, status: int) -> None:
        """Ends the process now; a spinner goes, and the cursor that it hides comes back."""
        try:
            if self.before_leaving is not None:
                self.before_leaving()
            if self._display:
                os.write(2, b"\r\x1b[2K\x1b[?25h")
        finally:  # the terminal may be gone
            os._exit(status)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        cancel = self.modes.get("cancel")
        if not self._running:
            self.leave(128 + number)
        elif number == signal.SIGINT and self.modes.get("session"):
            if _importing(frame):
                _thread.start_new_thread(_repeat, (number,))
            elif cancel is None:
                raise KeyboardInterrupt
            else:
                cancel()
        elif self._received is not None or _importing(frame):
            self.leave(128 + number)
        else:
            self._received = number
            if not self.modes.get("patient"):
                _thread.start_new_thread(self._lose_patience, (128 + number,))
            if cancel is not None and not self.modes.get("session"):
                cancel()
            else:
                raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def _lose_patience(self, status: int) -> None:
        # Not threading.Timer: its locks may be held by the very code that the signal interrupted.
        time.sleep(GRACE_SECONDS)
        if not self.modes.get("patient"):
            self.leave(status)

    def _on_unraisable(self, lost: Any) -> None:
        if self._received is not None and lost.exc_type in (KeyboardInterrupt, SystemExit):
            self.leave(128 + self._received)
        sys.__unraisablehook__(lost)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _repeat(number: int) -> None:
    time.sleep(_REPEAT_SECONDS)
    signal.raise_signal(number)


class _Mode:
    """A block in which some modes are set; they are afterwards as they were before."""

    def __init__(self, owner: Interrupts, **values: Any) -> None:
        self._owner, self._values = owner, values
        self._before = owner.modes

    def __enter__(self) -> None:
        self._before = self._owner.modes
        self._owner.modes = {**self._before, **self._values}  # one assignment: a signal sees all or nothing

    def __exit__(self, *error: object) -> None:
        self._owner.modes = self._before


interrupts = Interrupts()
