"""Where output goes: the answer to stdout, everything else to stderr, a spinner while one waits.

Knows streams, terminals, colours and control characters. Does not know models, conversations or commands.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from phirt.errors import PhirtError

from .interrupts import interrupts
from .rendering.controls import printable
from .rendering.display import AnswerDisplay, answer_display, columns


class OutputError(PhirtError):
    """Standard output cannot take the answer, such as a full disk behind a redirection."""


def one_line(text: str) -> str:
    """The text on one line, without control characters: for names and messages inside a sentence."""
    return printable(" ".join(text.split()))


def keep_stdout_for_answers() -> None:
    """From now on only this program's own stdout leads there: what native code writes to the descriptor 1,
    such as a decoder's warnings, goes to stderr. For the process's main program; a terminal stays as it is.
    """
    if sys.stdout.isatty():
        return
    try:
        answers = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), 1)
    except (OSError, ValueError):
        return  # not files of the system: nothing native writes there
    encoding = sys.stdout.encoding
    sys.stdout.flush()
    sys.stdout = os.fdopen(answers, "w", encoding=encoding, errors="replace", buffering=1, closefd=False)


def abandon(stream: TextIO) -> None:
    """Points the stream at nothing, so that the interpreter's last flush cannot fail a second time."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return  # not a file of the system, such as a test's buffer: its flush cannot fail


@contextlib.contextmanager
def _errors_of(stdout: TextIO) -> Iterator[None]:
    """Turns a failure of stdout into an OutputError; a reader that went away stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(stdout)
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


class Output:
    """The two streams of one command.

    stdout gets raw text when it is a file or a pipe, and printable text when it is a terminal. stderr gets
    notices, tables and the spinner; rich leaves colours out when stderr is no terminal or NO_COLOR is set.
    `markdown` is whether an answer is rendered on a terminal.
    """

    def __init__(
        self, stdout: TextIO | None = None, stderr: TextIO | None = None, *, markdown: bool = True
    ) -> None:
        self._stdout = stdout or sys.stdout
        self._markdown = markdown
        self._console = Console(
            file=stderr or sys.stderr, highlight=False, soft_wrap=True, emoji=False, markup=False
        )
        self._stdout_is_terminal = self._stdout.isatty()
        # Not rich's word: FORCE_COLOR and TTY_COMPATIBLE make it take a file for a terminal.
        self._redraws = self._console.file.isatty() and self._console.is_terminal

    @property
    def console(self) -> Console:
        """The console on stderr, for live displays."""
        return self._console

    @property
    def notices_on_terminal(self) -> bool:
        """Whether stderr is a terminal, where a display may redraw itself."""
        return self._redraws

    @property
    def answers_on_terminal(self) -> bool:
        """Whether stdout is a terminal, which a display on stderr would share."""
        return self._stdout_is_terminal

    def answer_display(self) -> AnswerDisplay:
        """What shows an answer as it comes, on stdout. It raises OutputError when stdout cannot take it."""
        return answer_display(self._stdout, self._write, markdown=self._markdown)

    def answer(self, text: str) -> None:
        """Writes text to stdout at once. Raises OutputError when stdout cannot take it."""
        self._write(printable(text) if self._stdout_is_terminal else text)

    def json(self, value: Any) -> None:
        """Writes one JSON object on one line, in ASCII where the stream could garble other characters."""
        encoding = (self._stdout.encoding or "ascii").lower().replace("-", "")
        ascii_only = self._stdout_is_terminal or encoding != "utf8"
        self._write(json.dumps(value, ensure_ascii=ascii_only, allow_nan=False) + "\n")

    def table(self, table: Table) -> None:
        """Writes a table as the answer; whole values, however narrow the terminal."""
        width = None if self._stdout_is_terminal else 160
        # Rendered apart: rich would answer a reader that went away in its own way.
        rendered = io.StringIO()
        plain = Console(file=self._stdout, highlight=False, emoji=False, markup=False, width=width)
        Console(
            file=rendered,
            highlight=False,
            emoji=False,
            markup=False,
            width=plain.width,
            force_terminal=plain.is_terminal,
        ).print(table)
        self._write(rendered.getvalue())

    def results(
        self, document: dict[str, Any], tables: Sequence[Table], lines: Sequence[str], *, as_json: bool
    ) -> None:
        """Writes what was measured: as one JSON object, or as tables with lines below them."""
        if as_json:
            self.json(document)
            return
        for table in tables:
            self.table(table)
            self.answer("\n")
        for line in lines:
            self.answer(f"{line}\n")

    def _write(self, text: str) -> None:
        with _errors_of(self._stdout):
            self._stdout.write(text)
            self._stdout.flush()

    def notice(self, text: str, style: str = "") -> None:
        """One or more lines on stderr."""
        self._console.print(Text(self._wrapped(printable(text)), style=style))

    def hint(self, text: str) -> None:
        """A quiet line on stderr: figures, reminders."""
        self.notice(text, "dim")

    def notice_table(self, table: Table) -> None:
        """A table on stderr; whole values where that is no terminal."""
        if self._redraws:
            self._console.print(table, soft_wrap=False)
        else:
            Console(file=self._console.file, highlight=False, emoji=False, markup=False, width=160).print(
                table
            )

    def prompt(self, text: str) -> None:
        """The prompt of an interactive session on stderr, without a newline."""
        self._console.print(Text(text), end="")

    def error(self, text: str) -> None:
        """One line on stderr, beginning with `error:`."""
        line = Text(self._wrapped(f"error: {one_line(text)}"))
        line.stylize("bold red", 0, len("error: "))
        self._console.print(line)

    def _wrapped(self, text: str) -> str:
        """The text in whole words where that is a terminal; a program reads lines as they are."""
        if not self._redraws:
            return text
        from .rendering.wrapping import in_whole_words  # its tables take a moment, which no pipe needs

        return in_whole_words(text, columns(self._console.file))

    @contextlib.contextmanager
    def busy(self, label: str) -> Iterator[Busy]:
        """Shows on a terminal that work goes on, until the block ends or the yielded display is stopped."""
        display = Busy(self._console, shown=self._redraws)
        try:
            display.wait(label)
            yield display
        finally:
            display.stop()

    @contextlib.contextmanager
    def bars(self, *columns: ProgressColumn, transient: bool = True) -> Iterator[Progress]:
        """Bars of the caller's own columns on stderr; only where `notices_on_terminal`."""
        interrupts.displays(True)
        try:
            with Progress(*columns, console=self._console, transient=transient) as progress:
                yield progress
        finally:
            interrupts.displays(False)


class Busy:
    """What a person sees while waiting: a spinner, or a bar where it is known how far things are.

    Nothing is shown where stderr is no terminal, and nothing stays on the screen afterwards.
    """

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._console = console
        self._shown = shown
        self._spinner: Status | None = None
        self._bar: Progress | None = None

    def wait(self, label: str) -> None:
        """Shows a spinner."""
        self.stop()
        if self._shown:
            interrupts.displays(True)
            self._spinner = self._console.status(Text(one_line(label), style="dim"), spinner="dots")
            self._spinner.start()

    def advance(self, label: str, done: float, total: float) -> None:
        """Shows a bar under the label, and takes it away when all is done."""
        if not self._shown:
            return
        if self._bar is None:
            self.stop()
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bar.add_task(one_line(label), total=total)
            interrupts.displays(True)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, description=one_line(label))
        if done >= total:
            self.stop()

    def stop(self) -> None:
        """Takes away what is shown."""
        for shown in (self._spinner, self._bar):
            if shown is not None:
                shown.stop()
        self._spinner = self._bar = None
        interrupts.displays(False)


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without lines; a column whose name begins with `#` is aligned right."""
    table = Table(
        box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", padding=(0, 2, 0, 0)
    )
    for column in columns:
        right = column.startswith("#")
        table.add_column(
            column.lstrip("#"), justify="right" if right else "left", header_style="dim", overflow="fold"
        )
    return table


def size(count: int) -> str:
    """A byte count for people, in powers of 1000: `12 B`, `3.4 kB`, `25.1 MB`."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 1000 or unit == "GB":
            break
    return f"{amount:.1f} {unit}"
