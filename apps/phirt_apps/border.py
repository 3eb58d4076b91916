"""The error border: whatever happens inside a command, a user sees one clear line and an exit status.

Knows exceptions and exit statuses. Does not know any command.

    0    done
    1    the request failed (one line on stderr says why)
    2    wrong usage
    130  stopped with Ctrl-C
    141  the reader of stdout went away
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from phirt.errors import PhirtError

from .show import Output, abandon, one_line

FAILED, WRONG_USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


class MissingExtraError(PhirtError):
    """A command needs packages that a plain install leaves out."""


class UsageError(PhirtError):
    """The command line itself is wrong: exit status 2."""


class Border(TyperGroup):
    """The group of all commands; turns every exception into one line on stderr and an exit status."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command line and exits; with `standalone_mode=False` exceptions pass through."""
        options = {"prog_name": prog_name, "complete_var": complete_var, **extra}
        options["windows_expand_args"] = windows_expand_args
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **options)
        try:
            value = super().main(args, standalone_mode=False, **options)
            status = value if isinstance(value, int) else 0
        except Exception as error:
            status = report(error, Output())
        sys.exit(status)

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command; handles here what the library would answer in its own words."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except BrokenPipeError:
            abandon(sys.stdout)
            raise typer.Exit(BROKEN_PIPE) from None
        except (KeyboardInterrupt, EOFError):
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            abandon(sys.stdout)
            raise PhirtError(_system_message(error)) from error


def report(error: Exception, out: Output) -> int:
    """Prints the one line that a user needs about the exception; returns the exit status."""
    if os.environ.get("PHIRT_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, UsageError):
        out.error(str(error))
        return WRONG_USAGE
    if isinstance(error, PhirtError):
        out.error(str(error) or type(error).__name__)
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
    if isinstance(error, MemoryError):
        out.error("not enough memory: close other programs, or use shorter or smaller input")
        return FAILED
    detail = str(error) or "no details"
    out.error(f"{type(error).__name__}: {detail} (a fault in phirt; PHIRT_DEBUG=1 shows where)")
    return FAILED


def _system_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
