"""Standard input beside a prompt, in its place, and instead of a file; and input that never comes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phirt.errors import ConfigError
from phirt_apps import text_files
from phirt_apps.cli import app

ENTRY = "from phirt_apps.__main__ import main; main()"
posix = pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
TEXT = "The cat is called Mogli."
QUESTION = "What is the cat called?"


def _count(*arguments: object, input: str | bytes = b"") -> int:
    """The tokens of a prompt, by `phirt tokens`."""
    done = CliRunner().invoke(app, ["tokens", "--json", *map(str, arguments)], input=input)
    assert done.exit_code == 0, done.stderr
    return int(json.loads(done.stdout)["total"])


def test_piped_text_follows_the_prompt_behind_an_empty_line() -> None:
    """Case 01."""
    joined = _count(QUESTION, input=TEXT + "\n")
    assert joined == _count(f"{QUESTION}\n\n{TEXT}") == _count("-", input=f"{QUESTION}\n\n{TEXT}\n")
    assert joined > _count(QUESTION)


@pytest.mark.parametrize("nothing", ["", "\n", " \n\t\n"])
def test_nothing_on_stdin_changes_nothing(nothing: str) -> None:
    assert _count(QUESTION, input=nothing) == _count(QUESTION)


def test_the_joined_text_reaches_the_model(bundle: Path, run) -> None:
    chat = ("chat", "-m", bundle, "--json", "--max-new-tokens", 2)
    piped = json.loads(run(*chat, "the quick", input=b"brown fox\n").stdout)
    typed = json.loads(run(*chat, "the quick\n\nbrown fox").stdout)
    assert piped["prompt_ids"] == typed["prompt_ids"]


def test_a_dash_is_standard_input() -> None:
    """Case 20."""
    assert _count("-", input="Say hello.\n") == _count("Say hello.") == _count(input="Say hello.\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"])
def test_a_byte_order_mark_is_no_part_of_the_text(encoding: str) -> None:
    """Case 17, and what Windows' tools write."""
    mark = "\ufeff".encode(encoding) if encoding.endswith(("le", "be")) else b""  # the others write their own
    data = mark + "Grüße 🎉\r\n".encode(encoding)
    assert text_files.decode(data, "x") == "Grüße 🎉\r\n"
    assert _count(input=data) == _count("Grüße 🎉")


def test_the_cases_of_the_byte_order_mark(shared_data: Path) -> None:
    folder = shared_data.parent / "cases" / "use" / "17-utf8-bom"
    with_mark, plain = ((folder / name).read_bytes() for name in ("bom.txt", "plain.txt"))
    assert _count(input=with_mark) == _count(input=plain) == 8


@pytest.mark.parametrize(
    "data", ["hello".encode("utf-16-le"), b"\xff\xd8\xff\xe0JFIF", b"caf\xe9", b"\xff\xfeh"]
)
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        text_files.decode(data, "standard input")
    done = CliRunner().invoke(app, ["tokens", "hi"], input=data)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_a_stray_zero_is_text() -> None:
    assert text_files.decode(b"a line of a log\0and another", "x") == "a line of a log\0and another"


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["tokens", "hi"], input=b"x" * 4_000_001)
    assert done.exit_code == 1 and "too long; at most 4,000,000 bytes" in done.stderr


@pytest.mark.parametrize("option", ["--image", "--audio"])
def test_a_file_on_standard_input(bundle: Path, examples: Path, run, option: str) -> None:
    name = {"--image": "shapes.png", "--audio": "seven.flac"}[option]
    chat = ("chat", "-m", bundle, "--json", "--max-new-tokens", 3)
    data = (examples / name).read_bytes()
    piped, named = run(*chat, option, "-", "hi", input=data), run(*chat, option, examples / name, "hi")
    assert piped.returncode == 0, piped.stderr
    assert json.loads(piped.stdout)["ids"] == json.loads(named.stdout)["ids"]
    alone = run(*chat, option, "-", input=data)
    assert alone.returncode == 0 and json.loads(alone.stdout)["usage"]["prompt_tokens"] > 3
    counted = run("tokens", "-m", bundle, option, "-", "hi", input=data)
    assert counted.returncode == 0 and b"standard input" in counted.stdout


@pytest.mark.parametrize(
    "wanted", [("-", "--image", "-"), ("--image", "-", "--audio", "-"), ("x", "--image", "-", "--image", "-")]
)
def test_standard_input_is_read_once(wanted: tuple[str, ...]) -> None:
    for command in ("chat", "tokens"):
        done = CliRunner().invoke(app, [command, *wanted], input=b"x")
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "only once" in done.stderr


@posix
def test_a_terminal_is_no_file(terminal) -> None:
    screen = terminal("chat", "--image", "-", "hi")
    assert screen.finish() == 2
    assert "which is the terminal here" in screen.seen


@posix
def test_a_dash_at_a_terminal_reads_until_ctrl_d(terminal) -> None:
    screen = terminal("tokens", "-")
    screen.type("Say hello.\n\x04")
    screen.wait(r"total +8")
    assert screen.finish() == 0


@posix
def test_a_terminal_beside_a_prompt_is_not_read(terminal) -> None:
    screen = terminal("tokens", "Say hello.")
    screen.wait(r"total +8")
    assert screen.finish() == 0


def _shell(script: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Runs a shell script in which $P is phirt, which gives up on input after a second and a half."""
    limit = "import phirt_apps.stdin as s; s.NOTICE_SECONDS = 0.5; s.GIVE_UP_SECONDS = 1.5\n"
    command = f'{sys.executable} -c "{limit}{ENTRY}"'
    return subprocess.run(
        ["bash", "-c", f'phirt() {{ exec {command} "$@"; }}\n{script}', "bash", *map(str, arguments)],
        capture_output=True,
        timeout=60,
        check=False,
    )


def _total(output: bytes) -> int:
    """The last line's figure of `phirt tokens`."""
    return int(output.split(b"total")[1].split()[0])


@posix
@pytest.mark.parametrize(
    "script",
    [
        'echo "$1" | (phirt tokens "$2")',
        '(sleep 3; echo "$1") | (phirt tokens "$2")',
        '(sleep 0.2; printf "The cat is"; sleep 2.5; echo " called Mogli.") | (phirt tokens "$2")',
        '(phirt tokens "$2") < <(sleep 2; echo "$1")',
        'd=$(mktemp -d); mkfifo $d/p; (sleep 2; echo "$1" >$d/p) & (phirt tokens "$2") <$d/p',
        '(phirt tokens "$2") <<< "$1"',
        'f=$(mktemp); echo "$1" >$f; (phirt tokens "$2") <$f',
        '(sleep 1; echo "$1") | cat | (phirt tokens "$2")',
    ],
    ids=["pipe", "slow", "in parts", "substitution", "named pipe", "here", "file", "three commands"],
)  # fmt: skip
def test_what_another_command_writes_is_waited_for(script: str) -> None:
    done = _shell(script, TEXT, QUESTION)
    assert done.returncode == 0, done.stderr
    assert _total(done.stdout) == _count(f"{QUESTION}\n\n{TEXT}")


@posix
def test_a_pipe_that_the_shell_keeps_open_does_not_hang() -> None:
    done = _shell('d=$(mktemp -d); mkfifo $d/p; exec 3<>$d/p; (phirt tokens "$1") <$d/p', QUESTION)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert b"nothing came on standard input" in done.stderr


@posix
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_an_inherited_pipe_that_never_sends_does_not_hang(kind: str) -> None:
    ends = os.pipe() if kind == "pipe" else tuple(end.detach() for end in socket.socketpair())
    limit = "import phirt_apps.stdin as s; s.NOTICE_SECONDS = 0.1; s.GIVE_UP_SECONDS = 0.4\n"
    command = [sys.executable, "-c", limit + ENTRY, "tokens", QUESTION]
    done = subprocess.run(command, stdin=ends[0], capture_output=True, timeout=30, check=False, text=True)
    for end in ends:
        os.close(end)
    assert done.returncode == 0 and done.stdout
    assert done.stderr == (
        "nothing came on standard input within 0.4 seconds, so it is not read; "
        "</dev/null goes on without the wait\n"
    )


@posix
def test_a_program_that_writes_late_is_heard() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "tokens", QUESTION], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    time.sleep(2)
    output, _ = process.communicate(TEXT.encode(), timeout=30)
    assert _total(output) == _count(f"{QUESTION}\n\n{TEXT}")


@posix
def test_a_pipe_that_somebody_made_non_blocking() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "tokens", QUESTION], stdin=read, stdout=subprocess.PIPE
    )
    os.close(read)
    for part in (TEXT[:10], TEXT[10:]):
        time.sleep(0.3)
        os.write(write, part.encode())
    os.close(write)
    output, _ = process.communicate(timeout=30)
    assert _total(output) == _count(f"{QUESTION}\n\n{TEXT}")
