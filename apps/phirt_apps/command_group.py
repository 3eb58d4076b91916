"""The group of all commands: their list, section by section, and the border at which every exception ends.

Knows how the library runs commands. Does not know any command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from phirt.errors import PhirtError

from .commands import SECTIONS, all_commands
from .errors import BROKEN_PIPE, INTERRUPTED, report
from .interrupts import interrupts
from .output import Output, abandon


class CommandGroup(TyperGroup):
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

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands, a section at a time."""
        rows = [(name, module.SECTION, module.SUMMARY) for name, module in all_commands()]
        for section in SECTIONS:
            with formatter.section(section):
                formatter.write_dl([(name, summary) for name, of, summary in rows if of == section])

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command; handles here what the library would answer in its own words."""
        try:
            try:
                interrupts.begin()
                value = super().invoke(ctx)
                sys.stdout.flush()
            finally:
                interrupts.end()
        except BaseException as error:
            raise _outcome(error) from error
        if interrupts.status is not None:  # a callback of native code has swallowed the exception
            raise typer.Exit(interrupts.status)
        return value


def _outcome(error: BaseException) -> BaseException:
    """What the library shall see instead of the exception with which a command ended."""
    if interrupts.status is not None:  # whatever the interrupted code has made of it
        return typer.Exit(interrupts.status)
    if isinstance(error, KeyboardInterrupt | EOFError):
        return typer.Exit(INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        abandon(sys.stdout)
        return typer.Exit(BROKEN_PIPE)
    if isinstance(error, OSError):
        abandon(sys.stdout)
        return PhirtError(_system_message(error))
    return error


def _system_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
