"""Errors on the command line: whatever happens, a user sees one clear line, and a script an exit status.

Knows exceptions and exit statuses. Does not know any command.

    0    done
    1    the request failed (one line on stderr says why)
    2    wrong usage
    130  stopped with Ctrl-C; 143 by SIGTERM, 129 by SIGHUP
    141  the reader of stdout went away
"""

from __future__ import annotations

import os
import traceback

import typer

from phirt.errors import PhirtError, out_of_memory

from .output import Output, one_line

FAILED, WRONG_USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


class UsageError(PhirtError):
    """The command line itself is wrong: exit status 2."""


def report(error: Exception, out: Output) -> int:
    """Prints the one line that a user needs about the exception; returns the exit status."""
    if os.environ.get("PHIRT_DEBUG") == "1":
        traceback.print_exception(error)
    error = out_of_memory(error) or error
    if isinstance(error, UsageError):
        out.error(str(error))
        return WRONG_USAGE
    if isinstance(error, PhirtError):
        out.error(description(error))
        return FAILED
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    # The library's usage errors, whose base class is private in its newer versions.
    describe = getattr(error, "format_message", None)
    if callable(describe):
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", None) or "phirt"
        out.error(f"{one_line(describe()).rstrip('.')} (see: {command} --help)")
        return WRONG_USAGE
    out.error(description(error))
    return FAILED


def description(error: Exception) -> str:
    """What a person is told about an error of a request."""
    error = out_of_memory(error) or error
    if isinstance(error, PhirtError):
        return str(error) or type(error).__name__
    detail = str(error) or "no details"
    return f"{type(error).__name__}: {detail} (a fault in phirt; PHIRT_DEBUG=1 shows where)"
