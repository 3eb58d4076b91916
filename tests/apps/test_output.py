"""Streams: what reaches a terminal, what reaches a file, and what a failing stdout does."""

from __future__ import annotations

import errno
import io
import json
import re

import pytest

from phirt_apps.output import Output, OutputError, one_line, plain_table, printable, size

HOSTILE = "red \x1b[31m bell \x07 title \x1b]0;x\x07 csi \x9b2J cr \r del \x7f tab \t line\nend"


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Pipe(io.StringIO):
    """A text stream that says it is none."""

    encoding = "utf-8"


def test_control_characters_never_reach_a_terminal() -> None:
    stdout = Terminal()
    Output(stdout, Pipe()).answer(HOSTILE)
    written = stdout.getvalue()
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in written)
    assert written.startswith("red [31m bell ") and written.endswith("tab \t line\nend")


def test_a_file_gets_the_answer_unchanged() -> None:
    stdout = Pipe()
    Output(stdout, Pipe()).answer(HOSTILE)
    assert stdout.getvalue() == HOSTILE


def test_printable_keeps_every_other_character() -> None:
    text = "naïve 日本語 🎉 — tab\tnewline\n"
    assert printable(text) == text


def test_an_error_is_one_line_without_controls() -> None:
    stderr = Pipe()
    Output(Pipe(), stderr).error("bad \x1b[2J name\nsecond   line")
    assert stderr.getvalue() == "error: bad [2J name second line\n"


def test_a_long_error_is_not_wrapped() -> None:
    stderr = Pipe()
    Output(Pipe(), stderr).error("word " * 100)
    assert stderr.getvalue().count("\n") == 1


def test_markup_in_names_is_text() -> None:
    stdout, stderr = Pipe(), Pipe()
    out = Output(stdout, stderr)
    out.error("[red]x[/red] :smile:")
    table = plain_table("name")
    table.add_row("[bold]a.png[/bold]")
    out.table(table)
    assert "[red]x[/red] :smile:" in stderr.getvalue()
    assert "[bold]a.png[/bold]" in stdout.getvalue()


def test_json_is_one_line_and_safe_on_a_terminal() -> None:
    value = {"text": "é\x9b\x1b\n日"}
    pipe, terminal = Pipe(), Terminal()
    Output(pipe, Pipe()).json(value)
    Output(terminal, Pipe()).json(value)
    assert json.loads(pipe.getvalue()) == json.loads(terminal.getvalue()) == value
    assert pipe.getvalue().count("\n") == terminal.getvalue().count("\n") == 1
    assert "日" in pipe.getvalue()
    assert terminal.getvalue().isascii()


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, pipe = Terminal(), Pipe()
    Output(Pipe(), terminal).error("x")
    Output(Pipe(), pipe).error("x")
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b" not in pipe.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Output(Pipe(), plain).error("x")
    assert "31m" not in plain.getvalue()


def test_the_spinner_stays_off_a_pipe() -> None:
    stderr = Pipe()
    with Output(Pipe(), stderr).busy("working") as busy:
        busy.advance("working", 1, 2)
        busy.stop()
    assert stderr.getvalue() == ""


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_nothing_is_redrawn_in_a_file_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Case 16: colours may follow FORCE_COLOR, a spinner may not."""
    monkeypatch.setenv(name, "1")
    stderr = Pipe()
    out = Output(Pipe(), stderr)
    with out.busy("working") as busy:
        busy.advance("working", 1, 2)
        busy.wait("still")
    assert stderr.getvalue() == "" and not out.notices_on_terminal
    out.error("red")
    assert re.sub(r"\x1b\[[\d;]*m", "", stderr.getvalue()) == "error: red\n"


class FullDisk(Pipe):
    """A stream on a disk that is full."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_behind_stdout_is_one_error() -> None:
    out = Output(FullDisk(), Pipe())
    table = plain_table("name")
    for write in (lambda: out.answer("text"), lambda: out.json({}), lambda: out.table(table)):
        with pytest.raises(OutputError, match="cannot write to standard output: No space left on device"):
            write()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (25_140_000, "25.1 MB"), (2_040_000_000, "2.0 GB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_one_line() -> None:
    assert one_line(" a\tb\n\nc\x1b ") == "a b c"
