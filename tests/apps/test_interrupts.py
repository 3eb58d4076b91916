"""Ctrl-C, SIGTERM and SIGHUP at any moment: the right exit status, no traceback, a terminal in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phirt_apps.interrupts import Interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

ENTRY = "from phirt_apps.__main__ import main; main()"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
ANSWER = ("chat", "Tell me about the sea.", "--max-new-tokens", "400", "--temperature", "1", "--seed", "3")


def _heeding() -> None:
    """Ctrl-C works in the child, also where the tests themselves run with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(script: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=_heeding,
    )


AT_IMPORT = """
import os, signal, sys
def watch(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), {number})
sys.addaudithook(watch)
"""
MODULES = [
    "phirt_apps.cli", "typer", "rich.console", "phirt.errors", "numpy", "numpy.linalg", "onnxruntime",
    "onnxruntime.capi._pybind_state", "tokenizers", "jinja2.sandbox", "PIL.Image",
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_at_the_import_of_a_module(module: str, examples: Path) -> None:
    script = AT_IMPORT.format(module=module, number=int(signal.SIGINT)) + ENTRY
    done = _run(script, *ANSWER, "--image", examples / "shapes.png")
    assert (done.returncode, done.stderr, done.stdout) == (130, b"", b"")


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("module", ["rich.console", "onnxruntime"])
def test_every_signal_has_its_status(module: str, number: int, status: int) -> None:
    done = _run(AT_IMPORT.format(module=module, number=int(number)) + ENTRY, *ANSWER)
    assert (done.returncode, done.stderr, done.stdout) == (status, b"", b"")


READY = """
import os, sys
from phirt_apps.interrupts import interrupts
interrupts.install()
os.write(int(sys.argv.pop(1)), b"x")
"""


@pytest.mark.parametrize("milliseconds", [0, 1, 3, 10, 30, 60, 100, 150, 200, 250, 300, 400, 500, 700])
def test_at_any_moment(milliseconds: int) -> None:
    """Case 10, from the moment on at which the interpreter runs the program.

    A process that has nothing left to do but to go away may be ended by the signal itself.
    """
    ready, tell = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", READY + ENTRY, str(tell), *ANSWER],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[tell],
        preexec_fn=_heeding,
    )
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGINT)
    answer, errors = process.communicate(timeout=20)
    assert errors == b""
    assert process.returncode == 130 or (process.returncode in (0, -signal.SIGINT) and answer.endswith(b"\n"))


WHILE_LOADING = """
import os, phirt, signal, time
def load(*arguments, **options):
    {body}
phirt.load = load
"""


KILL = "os.kill(os.getpid(), {number}); time.sleep(5)"
BODIES = {
    "plain": KILL,
    "another exception": f"try: {KILL}\n    except BaseException: raise ImportError('initialization failed')",
    "swallowed": f"try: {KILL}\n    except BaseException: return None",
    "lost in a destructor": f"class Lost:\n        def __del__(self): {KILL}\n    Lost(); time.sleep(5)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_whatever_the_interrupted_code_makes_of_it(body: str, number: int, status: int) -> None:
    done = _run(WHILE_LOADING.format(body=body.format(number=int(number))) + ENTRY, "chat", "hi")
    assert (done.returncode, done.stderr, done.stdout) == (status, b"", b"")


def test_code_that_does_not_heed_it_is_left_behind() -> None:
    body = "os.kill(os.getpid(), signal.SIGINT)"
    stubborn = "while True:\n        try: time.sleep(5)\n        except KeyboardInterrupt: pass"
    script = WHILE_LOADING.format(body=f"try: {body}\n    except KeyboardInterrupt: pass\n    {stubborn}")
    done = _run(script + "import phirt_apps.interrupts as i; i.GRACE_SECONDS = 0.1\n" + ENTRY, "chat", "hi")
    assert (done.returncode, done.stderr, done.stdout) == (130, b"", b"")


def test_a_second_ctrl_c_leaves_at_once(bundle: Path) -> None:
    """The reply takes no notice of the first one."""
    script = (
        "from phirt.chat.chat import Reply\n"
        "import os, signal\n"
        "Reply.cancel = lambda reply: os.kill(os.getpid(), signal.SIGINT)\n"
        "step = Reply.__next__\n"
        "def interrupted(reply): os.kill(os.getpid(), signal.SIGINT); return step(reply)\n"
        "Reply.__next__ = interrupted\n"
    )
    done = _run(script + ENTRY, "chat", "-m", bundle, "the quick", "--max-new-tokens", 30000)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_an_answer_that_is_stopped_keeps_what_was_written(bundle: Path, number: int, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "chat", "-m", str(bundle), "the quick", "--max-new-tokens", "30000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_heeding,
    )
    assert process.stdout is not None
    first = process.stdout.read(200)
    process.send_signal(number)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (status, b"")
    assert len(first) == 200 and rest.endswith(b"\n")


@pytest.mark.parametrize(("number", "status"), SIGNALS[:2])
def test_a_signal_that_is_to_be_ignored_is_ignored(number: int, status: int) -> None:
    """`nohup phirt …`, or `phirt … &` in a shell without job control."""
    script = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n"
    script += AT_IMPORT.format(module="onnxruntime", number=int(number)) + ENTRY
    done = _run(script, "chat", "hi", "--max-new-tokens", 2)
    assert done.returncode == 0 and done.stdout


def test_the_terminal_gets_its_cursor_back(terminal) -> None:
    screen = terminal(*ANSWER, wrapper=("env", "PYTHONSTARTUP="))
    screen.wait(r"loading the model")
    screen.type("\x03")
    assert screen.finish() in (130, -signal.SIGINT)
    assert "Traceback" not in screen.seen
    assert screen.seen.count("\x1b[?25l") <= screen.seen.count("\x1b[?25h")


def test_an_export_stopped_by_sigterm_says_so_by_its_status(tmp_path: Path) -> None:
    script = (
        "import phirt_export.exporter as exporter, os, signal\n"
        "def begin(*arguments, **settings): os.kill(os.getpid(), signal.SIGTERM)\n"
        "exporter.export_bundle = begin\n"
    )
    done = _run(script + ENTRY, "export", tmp_path, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr, done.stdout) == (143, b"", b"")


def test_a_terminal_is_put_back_before_the_process_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(os, "_exit", done.append)
    one = Interrupts()
    one.before_leaving = lambda: done.append("put back")
    one.leave(143)
    assert done == ["put back", 143]
