"""The command `phirt`: what holds for all commands, which are the files of the folder `commands`.

Knows the streams that the process was given, and the library that reads the command line.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

import phirt

from .command_group import Command, CommandGroup
from .commands import all_commands, subcommands
from .errors import WRONG_USAGE
from .interrupts import interrupts
from .log import show_log
from .output import Output, keep_stdout_for_answers
from .settings import Defaults

app = typer.Typer(
    name="phirt",
    cls=CommandGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """Runs the command line of this process and ends it."""
    interrupts.install()  # `__main__` has done so already, earlier
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for good
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # refused later, in one line
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a question mark instead of ending the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if os.environ.get("PHIRT_DEBUG") != "1" and not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings speak to developers
    keep_stdout_for_answers()
    show_log()
    typer.main.get_command(app)(prog_name="phirt")


def _version(wanted: bool) -> None:
    if wanted:
        Output().answer(f"phirt {phirt.__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Answers about text, images and recordings on your own machine: offline, nothing leaves it.

    \b
      phirt chat "What is the capital of France?"
      phirt chat --image photo.jpg "What is this?"
      phirt chat                                     an interactive session
      phirt transcribe memo.flac

    Exit status: 0 done, 1 the request failed (stderr says why in one line), 2 wrong usage, 130 stopped with
    Ctrl-C. PHIRT_DEBUG=1 shows where an error comes from; NO_COLOR is respected.
    """
    defaults = Defaults()
    context.default_map = {name: defaults for name, _ in (*all_commands(), *subcommands())}
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(WRONG_USAGE)


for _name, _module in all_commands():
    app.command(_name, cls=Command, short_help=_module.SUMMARY)(_module.command)
for _name, _module in subcommands():  # not offered where one word is awaited
    app.command(_name, cls=Command, short_help=_module.SUMMARY, hidden=True)(_module.command)
