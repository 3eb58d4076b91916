"""The group of all commands: their list, section by section, and the border at which every exception ends.

Knows how the library runs commands. Does not know any command.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from phirt.errors import PhirtError

from .commands import SECTIONS, all_commands
from .errors import BROKEN_PIPE, INTERRUPTED, UsageError, report
from .help_text import write_parameters
from .interrupts import interrupts
from .output import Output, abandon
from .settings import Defaults

# `-5 + 3`, `- milk`, `-m is what?`, `--- a/x`: a blank where no option's value could begin, or a ruled line.
_READS_AS_TEXT = re.compile(r"-\w*\s|--[^=]*\s|---")
_SHOWN_CHARACTERS = 60


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
            status: Any = value if isinstance(value, int) else 0
            sys.stdout.flush()  # help is written before any command begins
        except SystemExit as error:  # the library ends so when the reader of the help went away
            status = BROKEN_PIPE if isinstance(error.__context__, BrokenPipeError) else error.code
        except BrokenPipeError:
            abandon(sys.stdout)
            status = BROKEN_PIPE
        except OSError as error:
            abandon(sys.stdout)
            status = report(PhirtError(f"cannot write to standard output: {error.strerror}"), Output())
        except Exception as error:
            status = report(error, Output())
        sys.exit(status)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options that hold for all commands, then the commands."""
        write_parameters(ctx, self.get_params(ctx), formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands, a section at a time."""
        rows = [(name, module.SECTION, module.SUMMARY) for name, module in all_commands()]
        for section in SECTIONS:
            with formatter.section(section):
                formatter.write_dl([(name, summary) for name, of, summary in rows if of == section])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names, or the first two, and the other words."""
        two = " ".join(args[:2])
        if len(args) > 1 and two in self.commands:
            return two, self.commands[two], args[2:]
        return super().resolve_command(ctx, args)

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


class Command(TyperCommand):
    """One command; a text that begins with a dash gets a hint at `--` instead of being an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the command's options and arguments. Raises UsageError for text that begins with a dash."""
        given = list(args)  # the library takes words away as it goes
        text = self._dashed_text(given)
        if text is not None:
            raise UsageError(self._hint(text))
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            hint = self._hint_at(error, given) or _environment_hint(error, ctx)
            if hint is None:
                raise
            raise UsageError(hint) from error

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Raises ConfigError where the user's settings, which it needs, cannot be read."""
        if isinstance(ctx.default_map, Defaults) and ctx.default_map.error is not None:
            raise ctx.default_map.error
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes what the arguments and options are."""
        write_parameters(ctx, self.get_params(ctx), formatter)

    def _hint_at(self, error: Exception, words: list[str]) -> str | None:
        """What helps against a mistake that the library has found, where its own words do not."""
        if not any(isinstance(param, TyperArgument) for param in self.params):
            return None
        message, option = str(getattr(error, "message", "")), getattr(error, "option_name", None)
        if message.startswith("Got unexpected extra arg"):
            said = message.rstrip(".")
            return f"{said}; a text of several words stands in quotes (see: phirt {self.name} --help)"
        if type(error).__name__ == "NoSuchOption" and option and not getattr(error, "possibilities", None):
            return self._hint(next((word for word in words if word.startswith(option)), option))
        return None

    def _dashed_text(self, words: list[str]) -> str | None:
        """The first word that the library would take for short options, though it reads as a text."""
        value_of_option = False
        for word in words:
            if word == "--":
                return None
            if not value_of_option and _READS_AS_TEXT.match(word):
                return word
            value_of_option = not value_of_option and any(
                word in param.opts and not getattr(param, "is_flag", False) for param in self.params
            )
        return None

    def _hint(self, word: str) -> str:
        shown = word if len(word) <= _SHOWN_CHARACTERS else f"{word[:_SHOWN_CHARACTERS]}…"
        return (
            f"{shown!r} is no option of 'phirt {self.name}'; a text or file name that begins with a dash "
            f"goes behind --: phirt {self.name} -- {shlex.quote(shown)}"
        )


def _environment_hint(error: Exception, ctx: Any) -> str | None:
    """A bad value of an environment variable under its own name; the library knows that of the option."""
    param = getattr(error, "param", None)
    variable = getattr(param, "envvar", None)
    if param is None or variable is None or not os.environ.get(variable):
        return None
    source = ctx.get_parameter_source(param.name)
    return (
        f"{variable}: {getattr(error, 'message', error)}" if source and source.name == "ENVIRONMENT" else None
    )


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
