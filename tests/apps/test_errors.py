"""Whatever a command does, a user sees one line and an exit status."""

from __future__ import annotations

import errno
import importlib.metadata
import shlex

import pytest
import typer
from typer.testing import CliRunner

from phirt.errors import MediaError
from phirt_apps.cli import app as phirt_app
from phirt_apps.command_group import CommandGroup
from phirt_apps.errors import UsageError
from phirt_apps.extras import install_line


def failing(error: BaseException) -> typer.Typer:
    """An application whose only command raises `error` after writing `partial`."""
    app = typer.Typer(cls=CommandGroup, add_completion=False, rich_markup_mode=None)

    @app.callback()
    def root() -> None:
        """A group."""

    @app.command()
    def go(number: int = 0) -> None:
        """Fails."""
        typer.echo("partial", nl=False)
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (MediaError("x.jpg is empty"), 1, "error: x.jpg is empty\n"),
        (MediaError("two\nlines"), 1, "error: two lines\n"),
        (MediaError(), 1, "error: MediaError\n"),
        (UsageError("give a prompt"), 2, "error: give a prompt\n"),
        (OSError(errno.EACCES, "Permission denied", "a.wav"), 1, "error: a.wav: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device\n"),
        (
            MemoryError(),
            1,
            "error: not enough memory to go on: close other programs, give this one more, or use a smaller "
            "model or smaller input\n",
        ),
        (ValueError("odd"), 1, "error: ValueError: odd (a fault in phirt; PHIRT_DEBUG=1 shows where)\n"),
        (
            RecursionError(),
            1,
            "error: RecursionError: no details (a fault in phirt; PHIRT_DEBUG=1 shows where)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_exception_is_a_line_and_a_status(error: BaseException, status: int, line: str) -> None:
    result = CliRunner().invoke(failing(error), ["go"])
    assert (result.exit_code, result.stderr) == (status, line)
    assert result.stdout == "partial"


def test_debugging_shows_the_traceback() -> None:
    result = CliRunner(env={"PHIRT_DEBUG": "1"}).invoke(failing(ValueError("odd")), ["go"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and result.stderr.rstrip().splitlines()[-1].startswith(
        "error: ValueError"
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["gone"], "No such command"), (["go", "--nope"], "--nope"), (["go", "--number", "x"], "--number")],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], part: str) -> None:
    result = CliRunner().invoke(failing(ValueError()), arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert part in result.stderr and "--help)" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "-5 + 3 = ?",
        "-5",
        "- milk\n- eggs",
        "-m is what?",
        "-help me",
        "--help me",
        "-Hello",
        "--wherefore",
        "--- a/x",
    ],
)
@pytest.mark.parametrize("command", ["chat", "tokens", "transcribe", "inspect"])
def test_a_text_that_begins_with_a_dash_gets_a_hint(command: str, text: str) -> None:
    """Case 20."""
    result = CliRunner().invoke(phirt_app, [command, text], input="")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"behind --: phirt {command} -- {shlex.quote(' '.join(text.split()))}" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--", "-5 + 3"],
        ["--system", "-be brief now", "hi"],
        ["--system=-be brief now", "hi"],
        ["hi", "--json"],
    ],
)
def test_a_dash_where_it_belongs_is_no_mistake(arguments: list[str]) -> None:
    assert CliRunner().invoke(phirt_app, ["tokens", *arguments], input="").exit_code == 0


def test_a_misspelt_option_gets_the_right_one() -> None:
    result = CliRunner().invoke(phirt_app, ["chat", "--temprature", "1", "hi"])
    assert result.exit_code == 2 and "--temperature" in result.stderr and " -- " not in result.stderr


def test_words_without_quotes_get_a_hint() -> None:
    result = CliRunner().invoke(phirt_app, ["chat", "what", "is", "this"])
    assert result.exit_code == 2 and "in quotes" in result.stderr


def test_a_command_that_asks_to_leave_leaves_quietly() -> None:
    result = CliRunner().invoke(failing(typer.Exit(0)), ["go"])
    assert (result.exit_code, result.stderr, result.stdout) == (0, "", "partial")


def test_an_extra_brings_the_packages_of_those_that_it_contains(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "numpy>=2.0",
        'uvicorn>=0.34; extra == "serve"',
        'phirt[schema]; extra == "serve"',
        'llguidance<2,>=1.9; extra == "schema"',
        "phirt[plot,serve]; extra == 'dev'",
        "matplotlib; extra == 'plot'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    assert install_line("serve") == 'pip install "uvicorn>=0.34" "llguidance<2,>=1.9"'
    assert install_line("dev") == 'pip install "matplotlib" "uvicorn>=0.34" "llguidance<2,>=1.9"'
