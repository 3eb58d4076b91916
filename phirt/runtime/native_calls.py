"""Calls into compiled code that must have come back before the interpreter ends.

When a program ends while a daemon thread computes, the interpreter unwinds that thread as it comes back from
onnxruntime or another C++ library, which aborts the process. So no new call begins once the program ends,
those under way are told to come out and waited for, and their threads sleep until the process is gone.

Knows threads, forks and the interpreter's end. Knows nothing of what is called.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from types import TracebackType
from typing import Protocol

_LONGEST_WAIT = 60.0  # seconds; a call that never comes back must not keep the process for ever

_log = logging.getLogger("phirt.native_calls")


class Stoppable(Protocol):
    """Something whose calls can be told to come out early."""

    def stop(self) -> None: ...


class NativeCalls:
    """`with native_calls:` around a call. In threads other than the main one a call that begins or ends while
    the program ends does not return.

    Costs less than a microsecond a call: appending to a list and taking from it need no lock of their own.
    """

    def __init__(self) -> None:
        self._under_way: list[None] = []
        self._ending = False
        self._one_came_out = threading.Event()
        self._stoppable: weakref.WeakSet[Stoppable] = weakref.WeakSet()

    def register(self, what: Stoppable) -> None:
        """Has `what` told to stop its calls when the program ends."""
        self._stoppable.add(what)

    def __enter__(self) -> None:
        self._under_way.append(None)
        if self._ending and not _in_main_thread():
            self._leave()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._under_way.pop()
        if self._ending:  # looked at last: `end` sets it before it looks at what is under way
            self._one_came_out.set()
            if not _in_main_thread():
                threading.Event().wait()  # until the process is gone

    def end(self) -> None:
        """Lets no more calls begin and waits for those under way."""
        self._ending = True
        deadline = time.monotonic() + _LONGEST_WAIT
        for what in list(self._stoppable) if self._under_way else ():
            what.stop()
        while self._under_way:
            self._one_came_out.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                _log.warning("the program ends while phirt still computes")
                return
            if self._under_way:
                self._one_came_out.wait(left)

    def forget(self) -> None:
        """In the child of a fork: the threads whose calls were under way are not in it."""
        self._under_way.clear()
        self._one_came_out = threading.Event()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


native_calls = NativeCalls()
atexit.register(native_calls.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=native_calls.forget)
