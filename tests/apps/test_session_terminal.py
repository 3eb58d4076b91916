"""A session on a pseudo-terminal, looked at through the screen of an independent terminal (pyte)."""

from __future__ import annotations

import os
import re
import signal
import stat
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import phirt

ENTER, CTRL_C, CTRL_D, CTRL_J, CTRL_Z, UP = "\r", "\x03", "\x04", "\n", "\x1a", "\x1b[A"
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
LONG = ("--max-new-tokens", "30000")


@pytest.fixture
def session(bundle: Path, terminal) -> Callable[..., object]:
    """Opens a session and waits for its first prompt."""

    def open_session(*arguments: object, **options: object) -> object:
        screen = terminal("chat", "-m", bundle, *arguments, **options)
        screen.wait_line(r"(\[.*\] )?> ")
        return screen

    return open_session


def asked(bundle: Path, saved: Path) -> list[str]:
    """The questions of a saved conversation."""
    return [message.content for message in phirt.load(bundle).load_chat(saved).messages[::2]]


def leave(screen, saved: Path | None = None) -> None:
    """Saves where it is asked to, and leaves."""
    if saved is not None:
        screen.type(f"/save {saved}{ENTER}")
        screen.wait("saved to")
        screen.wait_line("> ")
    screen.type(CTRL_D)
    assert screen.finish() == 0
    assert "Traceback" not in screen.seen


def test_a_paste_is_one_message(session, bundle: Path, tmp_path: Path) -> None:
    screen = session("--max-new-tokens", "5")
    screen.type(f"{PASTE}first line\r\n/help\nthird line{PASTED}")
    screen.wait_line("  third line")
    assert screen.lines[-3:] == ["> first line", "  /help", "  third line"]
    screen.type(ENTER)
    screen.wait("cut at 5")
    screen.type('"""one' + ENTER)
    screen.wait_line("  ")
    screen.type('two"""' + ENTER)
    screen.wait("cut at 5")
    screen.wait_line("> ")
    screen.type("up")
    screen.wait_line("> up")
    time.sleep(0.1)  # longer than a program needs between two keys
    screen.type(CTRL_J)
    screen.wait_line("  ")
    screen.type("down" + ENTER)
    screen.wait("cut at 5")
    screen.wait_line("> ")
    leave(screen, tmp_path / "talk.phirt")
    assert asked(bundle, tmp_path / "talk.phirt") == ["first line\n/help\nthird line", "one\ntwo", "up\ndown"]


def test_keys_typed_during_an_answer_do_not_land_in_it(session, bundle: Path, tmp_path: Path) -> None:
    screen = session("--max-new-tokens", "300", "--plain", size=(100, 100))
    screen.type("hi" + ENTER)
    screen.wait(r"[ -~]{30}")
    screen.type("ZZ\x7fYX\x1b[DW")  # with a correction and an arrow
    screen.wait("cut at 300")
    screen.wait_line("> ZYW")
    answer = "".join(screen.lines[screen.lines.index("> hi") + 1 : -2])
    screen.type(ENTER)
    screen.wait("cut at 300")
    screen.type(f"/save {tmp_path / 'talk.phirt'}{ENTER}")
    screen.wait("saved to")
    screen.wait_line("> ")
    leave(screen)
    messages = phirt.load(bundle).load_chat(tmp_path / "talk.phirt").messages
    assert [message.content for message in messages[::2]] == ["hi", "ZYWX"]
    assert answer.replace(" ", "") == messages[1].content.replace(" ", "").replace("\n", "")


def test_a_message_typed_during_an_answer_is_sent_after_it(session, bundle: Path, tmp_path: Path) -> None:
    screen = session("--max-new-tokens", "100")
    screen.type("hi" + ENTER)
    screen.wait(r"[ -~]{30}")
    screen.type(f"{PASTE}two\nlines{PASTED}{ENTER}/stats{ENTER}rest")
    screen.wait("cut at 100(?s:.*)cut at 100(?s:.*)peak memory")
    screen.wait_line("> rest")
    screen.type(CTRL_C)
    leave(screen, tmp_path / "talk.phirt")
    assert asked(bundle, tmp_path / "talk.phirt") == ["hi", "two\nlines"]


def test_what_was_typed_before_ctrl_c_waits_at_the_prompt(session, bundle: Path, tmp_path: Path) -> None:
    screen = session(*LONG)
    screen.type("hi" + ENTER)
    screen.wait(r"[ -~]{30}")
    screen.type("x" * 9000 + ENTER)  # more than the system keeps of keys that nobody reads
    time.sleep(0.2)
    screen.type(CTRL_C)
    screen.wait("stopped; the answer so far stays")
    screen.wait_line(" *x+")
    screen.type(ENTER)
    screen.wait("lazy|jump|brown")
    screen.type(CTRL_C)
    screen.wait("stopped; the answer so far stays")
    screen.wait_line("> ")
    leave(screen, tmp_path / "talk.phirt")
    assert asked(bundle, tmp_path / "talk.phirt") == ["hi", "x" * 9000]


def test_what_is_typed_while_the_model_loads(terminal, bundle: Path, tmp_path: Path) -> None:
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "5")
    screen.wait("loading the model")
    screen.type("early bird" + ENTER + "late")
    screen.wait("cut at 5")
    screen.wait_line("> late")
    assert "> early bird" in screen.lines and sum("early bird" in line for line in screen.lines) == 1
    screen.type(CTRL_C)
    leave(screen, tmp_path / "talk.phirt")
    assert asked(bundle, tmp_path / "talk.phirt") == ["early bird"]


def test_words_wrap_at_the_width_of_the_moment(session) -> None:
    screen = session("--max-new-tokens", "800", size=(60, 300))
    screen.type("hi" + ENTER)
    screen.wait(r"(?:[ -~]{40,}\r\n){3}")
    screen.resize(30, 300)
    screen.wait("cut at 800")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.seen)
    answer = shown[shown.rindex("thinking") : shown.index("cut at 800")].split("\n")[1:-1]
    answer = [line.strip("\r") for line in answer]
    assert max(map(len, answer)) > 40 and all(len(line) <= 60 for line in answer)
    assert all(len(line) <= 30 for line in answer[-5:])
    screen.wait_line("> ")
    leave(screen)


def test_a_dropped_file(session, bundle: Path, examples: Path, tmp_path: Path) -> None:
    picture, clip = tmp_path / "my photo.png", tmp_path / "clip.flac"
    picture.write_bytes((examples / "shapes.png").read_bytes())
    clip.write_bytes((examples / "seven.flac").read_bytes())
    screen = session("--max-new-tokens", "5", "--stats")
    screen.type(f"{PASTE}'{picture}' {PASTED}")
    screen.type(ENTER)
    screen.wait(r"my photo.png: \d+ tokens")
    screen.wait_line(r"\[my photo.png\] > ")
    screen.type(f"what is it, and {PASTE}file://{clip}{PASTED} too" + ENTER)
    screen.wait(r"clip.flac: \d+ tokens")
    screen.wait("route vision")
    screen.wait_line("> ")
    leave(screen, tmp_path / "talk.phirt")
    assert asked(bundle, tmp_path / "talk.phirt") == ["what is it, and too"]


def test_completion_and_earlier_messages(session, examples: Path) -> None:
    screen = session("--max-new-tokens", "5")
    screen.type(f"/im\t{examples}/sha\t{ENTER}")
    screen.wait(r"shapes.png: \d+ tokens")
    screen.wait_line(r"\[shapes.png\] > ")
    screen.type("what" + ENTER)
    screen.wait("cut at 5")
    screen.wait_line("> ")
    screen.type(UP)
    screen.wait_line("> what")
    screen.type(UP)
    screen.wait_line(f"> /image {examples}/shapes.png")
    screen.type(CTRL_C)
    screen.wait("Ctrl-D or /quit leaves")
    screen.wait_line("> ")
    leave(screen)


def test_the_history_is_kept_where_it_is_asked_for(session, tmp_path: Path) -> None:
    def files() -> list[Path]:
        return [
            path
            for path in tmp_path.rglob("*")
            if path.is_file() and "phirt" in str(path) and "cache" not in str(path)
        ]

    environment = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    screen = session("--max-new-tokens", "5", **environment)
    screen.type("my secret" + ENTER)
    screen.wait("cut at 5")
    screen.wait_line("> ")
    leave(screen)
    assert files() == []
    screen = session("--max-new-tokens", "5", "--history", **environment)
    screen.type("not so secret" + ENTER)
    screen.wait("cut at 5")
    screen.wait_line("> ")
    leave(screen)
    [kept] = files()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    screen = session("--history", **environment)
    screen.type(UP)
    screen.wait_line("> not so secret")
    screen.type(CTRL_C)
    screen.wait_line("> ")
    leave(screen)


def echoes(screen) -> bool:
    """Whether the terminal shows what is typed, and reads lines, as shells want it."""
    flags = screen.modes[3]
    return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)


@pytest.mark.parametrize("moment", ["at the prompt", "during an answer"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(session, moment: str, number: signal.Signals) -> None:
    keeper = ("sh", "-c", '"$@"; echo "status $?"; read line', "sh")  # holds the terminal open
    screen = session(*LONG, wrapper=keeper)
    before = screen.seen.count("\x1b[?2004h")
    assert before and not echoes(screen)
    if moment == "during an answer":
        screen.type("hi" + ENTER)
        screen.wait(r"[ -~]{30}")
        assert not echoes(screen)
    [child] = [int(pid) for pid in Path(f"/proc/{screen.pid}/task/{screen.pid}/children").read_text().split()]
    os.kill(child, number)
    screen.wait(f"status {128 + number}")
    assert echoes(screen) and screen.seen.rindex("\x1b[?2004l") > screen.seen.rindex("\x1b[?2004h")
    assert screen.seen.rindex("\x1b[?25h") > screen.seen.rfind("\x1b[?25l") and "Traceback" not in screen.seen
    screen.type("\n")
    screen.finish()


@pytest.mark.parametrize("moment", ["at the prompt", "during an answer"])
def test_ctrl_z_gives_the_terminal_back_for_a_while(session, terminal, bundle: Path, moment: str) -> None:
    script = 'set -m; "$@"; echo "stopped $?"; read line; fg >/dev/null; echo "status $?"; read line'
    screen = session(*LONG, wrapper=("bash", "-c", script, "bash"))
    if moment == "during an answer":
        screen.type("hi" + ENTER)
        screen.wait(r"[ -~]{30}")
    screen.type(CTRL_Z)
    screen.wait(r"stopped 1\d\d")
    assert echoes(screen)
    screen.type("\n")
    if moment == "during an answer":
        screen.wait(r"[ -~]{30}")
        assert not echoes(screen)
        screen.type(CTRL_C)
        screen.wait("stopped; the answer so far stays")
    screen.wait_line("> ")
    screen.type("/stats" + ENTER)
    screen.wait("peak memory" if moment == "during an answer" else "no answer yet")
    screen.wait_line("> ")
    screen.type(CTRL_D)
    screen.wait("status 0")
    assert echoes(screen)
    screen.type("\n")
    screen.finish()


def test_ctrl_c_while_it_loads_leaves_the_terminal_as_it_was(terminal, bundle: Path) -> None:
    keeper = ("sh", "-c", 'trap : INT; "$@"; echo "status $?"; read line', "sh")
    screen = terminal("chat", "-m", bundle, wrapper=keeper)
    screen.wait("loading the model")
    screen.type(CTRL_C)
    screen.wait("status 130")
    assert echoes(screen) and "Traceback" not in screen.seen
    screen.type("\n")
    screen.finish()


def test_a_terminal_that_can_only_show_lines(terminal, bundle: Path, tmp_path: Path) -> None:
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "5", TERM="dumb")
    screen.wait("> ")
    screen.type('"""one\n')
    screen.wait(r"\.\.\. ")
    screen.type('two"""\n')
    screen.wait("cut at 5")
    screen.type(f"/save {tmp_path / 'talk.phirt'}\n")
    screen.wait("saved to")
    screen.type("/bye\n")
    assert screen.finish() == 0
    assert asked(bundle, tmp_path / "talk.phirt") == ["one\ntwo"]
    assert "\x1b" not in screen.seen.replace("\x1b[2m", "").replace("\x1b[0m", "")


def test_notices_are_in_whole_words_too(session) -> None:
    screen = session(size=(40, 50))
    screen.type("/hlep" + ENTER)
    screen.wait("message")
    screen.wait_line("> ")
    assert screen.lines[-4:-1] == [
        "error: unknown command /hlep; did you",
        "mean /help? //hlep would send it as a",
        "message",
    ]
    leave(screen)
