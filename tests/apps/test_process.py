"""`phirt` as a process among others: pipes that close, Ctrl-C, full disks, odd terminals, missing extras."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from phirt_apps.extras import MissingExtraError, install_line, needs_extra

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and devices")
COMMAND = [sys.executable, "-c", "from phirt_apps.cli import main; main()"]


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@posix
def test_ctrl_c_keeps_what_was_written(bundle: Path) -> None:
    process = _start("chat", "-m", bundle, "the quick", "--max-new-tokens", 30000)
    assert process.stdout is not None
    first = process.stdout.read(200)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"")
    assert len(first) == 200 and rest.endswith(b"\n")


@posix
def test_ctrl_c_while_starting_is_quiet(bundle: Path) -> None:
    script = (
        "import signal, os, phirt; load = phirt.load\n"
        "def interrupted(*a, **k): os.kill(os.getpid(), signal.SIGINT); return load(*a, **k)\n"
        "phirt.load = interrupted\n"
        "from phirt_apps.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "chat", "-m", bundle, "hi"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@posix
def test_json_of_a_stopped_answer_is_whole(bundle: Path) -> None:
    script = (
        "import threading, signal, os\n"
        "from phirt.chat.chat import Reply\n"
        "step = Reply.__next__\n"
        "def interrupted(reply):\n"
        "    piece = step(reply)\n"
        "    if len(reply._generation._state.token_ids) == 20: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return piece\n"
        "Reply.__next__ = interrupted\n"
        "from phirt_apps.cli import main; main()"
    )
    arguments = ["chat", "-m", str(bundle), "the quick", "--max-new-tokens", "30000", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, timeout=30, check=False
    )
    value = json.loads(done.stdout)
    assert (done.returncode, done.stderr, value["finish_reason"]) == (130, b"", "cancelled")
    assert 20 <= len(value["ids"]) <= 21 and value["text"]


@posix
def test_a_reader_that_leaves_ends_it_quietly(bundle: Path) -> None:
    process = _start("chat", "-m", bundle, "the quick", "--max-new-tokens", 30000)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == b""


@posix
@pytest.mark.parametrize("command", [["chat", "hi"], ["chat", "hi", "--json"], ["tokens", "hi"], ["devices"]])
def test_a_full_disk_behind_stdout(bundle: Path, run, command: list[str]) -> None:
    options = [] if command == ["devices"] else ["-m", bundle]
    with Path("/dev/full").open("wb") as full:
        done = run(*command, *options, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write to standard output: No space left on device\n"


@posix
@pytest.mark.parametrize("command", [["--help"], ["chat", "--help"], ["--version"]])
def test_a_full_disk_behind_help(run, command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr and b"a fault in phirt" not in done.stderr


@posix
def test_a_reader_that_does_not_want_the_help() -> None:
    process = _start("--help")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(timeout=20), process.stderr.read()) == (141, b"")


def test_stdout_and_stderr_of_an_answer(bundle: Path, run) -> None:
    done = run("chat", "-m", bundle, "the quick", "--max-new-tokens", 8, "--stats")
    assert done.returncode == 0
    assert b"first token" in done.stderr and b"first token" not in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr


def test_a_stream_that_knows_only_ascii(bundle: Path, run) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("inspect", bundle, env=environment)
    assert done.returncode == 0 and done.stderr == b"" and b"?" in done.stdout
    done = run("chat", "-m", bundle, "caf\u00e9", "--json", "--max-new-tokens", 3, env=environment)
    assert done.returncode == 0 and done.stdout.isascii()


@posix
def test_colours_and_spinners_stay_out_of_pipes_and_no_color(bundle: Path, terminal) -> None:
    plain = terminal("chat", "-m", bundle / "nowhere", "hi", NO_COLOR="1")
    assert plain.finish() == 1
    assert "error: " in plain.seen and "31m" not in plain.seen
    coloured = terminal("chat", "-m", bundle / "nowhere", "hi", NO_COLOR="")
    assert coloured.finish() == 1
    assert "31m" in coloured.seen


JSON_COMMANDS = [["chat", "the quick", "--json", "--max-new-tokens", "3"], ["devices", "--json"]]


@pytest.mark.parametrize("command", JSON_COMMANDS)
@pytest.mark.parametrize("closed", ["", "2>&-"])
def test_what_native_code_writes_to_stdout_does_not_spoil_the_answer(
    bundle: Path, command: list[str], closed: str
) -> None:
    """Attack 09: a decoder's warnings come from C, to the descriptor or through C's own buffer."""
    noise = (
        "import ctypes, os, phirt_apps.models, phirt_apps.machine as machine\n"
        "c = ctypes.CDLL(None)\n"
        "def noisy(function):\n"
        "    def call(*arguments, **options):\n"
        "        os.write(1, b'noise 1\\n'); c.puts(b'noise 2'); os.system('echo noise 3')\n"
        "        return function(*arguments, **options)\n"
        "    return call\n"
        "phirt_apps.models.load = noisy(phirt_apps.models.load)\n"
        "machine.cpu_name = noisy(machine.cpu_name)\n"
        "from phirt_apps.__main__ import main; main()"
    )
    options = ["-m", str(bundle)] if command[0] == "chat" else []
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", noise, *command, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and json.loads(done.stdout) and done.stdout.count(b"\n") == 1
    assert closed or all(f"noise {number}".encode() in done.stderr for number in (1, 2, 3))


def test_nothing_heavy_is_imported_and_no_socket_opened(bundle: Path, examples: Path) -> None:
    script = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event.startswith('socket.'): print('SOCKET', event, arguments, file=sys.stderr)\n"
        "sys.addaudithook(watch)\n"
        "from phirt_apps.cli import app\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'prompt_toolkit', 'markdown_it', 'pygments', 'wcwidth'}\n"
        "try: app(prog_name='phirt')\n"
        "finally: print('HEAVY', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    arguments = [
        "chat",
        "-m",
        str(bundle),
        "--image",
        str(examples / "shapes.png"),
        "--max-new-tokens",
        "3",
        "hi",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, timeout=30, check=False, text=True
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "HEAVY []")
    assert "SOCKET" not in done.stderr


def test_help_needs_no_runtime() -> None:
    script = (
        "import sys\n"
        "from phirt_apps.cli import app\n"
        "try: app(['chat', '--help'], prog_name='phirt')\n"
        "finally: print(sorted({'onnxruntime', 'numpy', 'torch'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=30, check=False, text=True
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize("command", [["export", "x", "-o", "y"], ["train", "x", "--data", "y"]])
def test_a_missing_extra_is_said_plainly(tmp_path: Path, command: list[str]) -> None:
    script = "import sys; sys.modules['torch'] = None; from phirt_apps.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        capture_output=True,
        timeout=30,
        check=False,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(f"; run: {install_line('export')}\n")


@pytest.mark.parametrize("extra", ["export", "media"])
def test_the_line_that_installs_an_extra_names_what_it_is_made_of(extra: str) -> None:
    """So it works from anywhere, whatever the installed phirt came from."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    command, *packages = shlex.split(install_line(extra).removeprefix("pip "))

    def normal(requirements: Iterable[str]) -> set[tuple[str, str]]:
        """Builders spell names and the order of bounds their own way."""
        read = map(Requirement, requirements)
        return {(canonicalize_name(one.name), str(one.specifier)) for one in read}

    assert command == "install" and normal(packages) == normal(project["optional-dependencies"][extra])


def test_another_missing_module_is_a_fault_and_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError), needs_extra("export"):
        raise ModuleNotFoundError("No module named 'phirt_export.gone'", name="phirt_export.gone")
    with pytest.raises(MissingExtraError, match="onnx_ir"), needs_extra("export"):
        raise ModuleNotFoundError("No module named 'onnx_ir.x'", name="onnx_ir.x")


@posix
@pytest.mark.parametrize(("closed", "status"), [("0", 0), ("1", 0), ("2", 0)])
def test_a_stream_that_was_closed_is_as_good_as_nothing(bundle: Path, closed: str, status: int) -> None:
    command = [*COMMAND, "chat", "-m", str(bundle), "--max-new-tokens", "2", "--stats", "hi"]
    shell = f'exec "$@" {closed}>&-' if closed != "0" else 'exec "$@" <&-'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, timeout=60, check=False)
    assert done.returncode == status
    assert b"Traceback" not in done.stderr and b"fault" not in done.stderr
    assert b"first token" not in done.stdout  # the figures belong to stderr, closed or not


@posix
def test_a_table_whose_reader_went_away(bundle: Path) -> None:
    process = _start("inspect", bundle)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr is not None and process.stderr.read() == b""
    process.stderr.close()
