"""How a request is told to stop.

Knows flags. Knows nothing of what is stopped.
"""

from __future__ import annotations

from typing import Protocol

from phirt.errors import RequestCancelledError


class CancelSignal(Protocol):
    """Anything that can be asked whether it is set; a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether the request is to stop."""


class Cancellation:
    """One request's own flag, beside a signal of the caller's, which may stand for many requests. Setting it
    takes no lock, so signal handlers may.
    """

    def __init__(self, callers: CancelSignal | None = None) -> None:
        self._callers = callers
        self._is_set = False

    def set(self) -> None:
        """Stops this request, and no other."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether the request is to stop."""
        return self._is_set or (self._callers is not None and self._callers.is_set())


def check(cancel: CancelSignal | None) -> None:
    """Raises RequestCancelledError where the request is to stop."""
    if cancel is not None and cancel.is_set():
        raise RequestCancelledError("the request was cancelled before its answer began")
