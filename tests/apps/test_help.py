"""Help for people: no types of a program, sensible defaults; shell completion; the version."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phirt_apps.cli import app
from phirt_apps.commands import SECTIONS, all_commands, subcommands

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
VERSION = tomllib.loads(PROJECT)["project"]["version"]
NAMES = [name for name, _ in all_commands()]
PHIRT = [sys.executable, "-c", "from phirt_apps.__main__ import main; main()"]


def _help(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("name", [*NAMES, *(name for name, _ in subcommands())])
def test_no_types_of_a_program(name: str) -> None:
    text = _help(*name.split())
    found = re.search(
        r"<[^>]*>|INTEGER|FLOAT|\bPATH\b|BOOLEAN|Optional|lambda|\bNone\b|x>=?|x<=?|UUID|str\b", text
    )
    assert found is None, found
    assert re.match(rf"Usage: phirt {name} ", text) and len(text.splitlines()) > 5


@pytest.mark.parametrize("name", [*NAMES, *(name for name, _ in subcommands())])
def test_every_parameter_is_explained(name: str) -> None:
    rows = re.split(r"^(?:Arguments|Options):\n", _help(*name.split()), flags=re.MULTILINE)[1:]
    for row in re.split(r"\n(?=  \S)", "\n".join(rows)):
        assert len(row.split()) >= 3, row


def test_defaults_are_short() -> None:
    text = _help("chat")
    assert set(re.findall(r"\[default: ([^\]]*)\]", text)) == {"512", "auto"}


def test_every_command_stands_in_the_list_with_its_section() -> None:
    text = _help()
    for section in SECTIONS:
        assert f"\n{section}:\n" in text
    assert [name for name in re.findall(r"^  (\w+) {2,}[A-Z]", text, flags=re.MULTILINE)] == NAMES


@pytest.mark.parametrize("option", ["-V", "--version"])
@pytest.mark.parametrize("module", [None, "phirt", "phirt_apps"])
def test_the_version_by_script_and_by_module(option: str, module: str | None) -> None:
    command = PHIRT if module is None else [sys.executable, "-m", module]
    done = subprocess.run([*command, option], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"phirt {VERSION}\n", "")


def test_the_module_answers_as_the_script_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "phirt", "tokens", "--nope"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "phirt tokens --help" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["ch"], {"chat"}),
        (["t"], {"tokens", "train", "transcribe"}),
        (["chat", "--im"], {"--image", "--image-detail"}),
        (["chat", "-m", ""], {"mini", "mine"}),
        (["inspect", "min"], {"mini", "mine"}),
        (["remove", ""], {"mini", "mine"}),
        (["config", "to"], {"top_p", "top_k"}),
        (["chat", "--image-detail", ""], {"low", "auto", "high"}),
        (["chat", "--image", "sha"], set()),  # the shell then completes file names
    ],
)
def test_completion_in_bash(tmp_path: Path, line: list[str], expected: set[str]) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text("[models]\nmine = '/somewhere'\n")
    script = tmp_path / "phirt"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(PHIRT)} "$@"\n')
    script.chmod(0o755)
    words = shlex.join(["phirt", *line])
    shell = (
        f'eval "$(phirt --show-completion)"; COMP_WORDS=({words}); COMP_CWORD={len(line)}; '
        "_phirt_completion phirt; printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p phirt"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PHIRT_CONFIG": str(settings)}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, env=environment)
    *found, registered = done.stdout.splitlines()
    assert {word for word in found if word} == expected, done.stderr
    assert "-o default" in registered  # file names


def test_completion_with_broken_settings(tmp_path: Path) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text("broken")
    environment = {**os.environ, "COMP_WORDS": "phirt chat -m ", "COMP_CWORD": "3"}
    environment |= {"_PHIRT_COMPLETE": "complete_bash", "PHIRT_CONFIG": str(settings)}
    done = subprocess.run(PHIRT, capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("", "")
