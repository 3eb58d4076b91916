"""The editor of a session: keys go in as a terminal sends them, messages come out. No terminal is needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from phirt_apps.interactive.commands import WITH_PATH, WORDS
from phirt_apps.interactive.editor import Editor
from phirt_apps.interactive.terminal import QuietTerminal

ENTER, NEWLINE, ALT_ENTER, UP, CTRL_R = "\r", "\n", "\x1b\r", "\x1b[A", "\x12"


class Desk:
    """An editor and the keys that are pressed in it."""

    def __init__(self, keys: object) -> None:
        self._keys = keys
        self.press: Callable[[str], None] = keys.send_text  # type: ignore[attr-defined]
        self.history = InMemoryHistory()
        terminal = QuietTerminal(io.StringIO(), io.StringIO())
        self.editor = Editor(terminal, WORDS, WITH_PATH, self.history, keys, DummyOutput())  # type: ignore[arg-type]

    def read(self, keys: str = "") -> str:
        """The message after these keys."""
        if keys:
            self.press(keys)
        return self.editor.read("> ")


@pytest.fixture
def desk() -> Iterator[Desk]:
    """An editor with an empty history."""
    with create_pipe_input() as keys:
        yield Desk(keys)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello" + ENTER, "hello"),
        ("hello" + NEWLINE, "hello"),  # as programs type
        ("one" + ALT_ENTER + "two" + ENTER, "one\ntwo"),
        ("\x1b[200~one\r\ntwo\rthree\n\x1b[201~" + ENTER, "one\ntwo\nthree\n"),
        ("a \x1b[200~/help\n\x03\x04\x1b[201~ b" + ENTER, "a /help\n\x03\x04 b"),
        ('"""one' + ENTER + "two" + ENTER + '"""' + ENTER, '"""one\ntwo\n"""'),
        ('"""one"""' + ENTER, '"""one"""'),
        (ENTER, ""),
        ("typo\x7f\x7fs" + ENTER, "tys"),
        ("漢字 👨\u200d👩\u200d👧" + ENTER, "漢字 👨\u200d👩\u200d👧"),
        ("/he\t" + ENTER, "/help"),
        ("/im\t x" + ENTER, "/image  x"),
    ],
)
def test_keys_become_a_message(desk: Desk, keys: str, text: str) -> None:
    assert desk.read(keys) == text


def test_ctrl_j_alone_begins_a_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phirt_apps.interactive.editor._TOGETHER", 0.0)  # as if a person typed
    assert desk.read("one" + NEWLINE + "two" + ENTER) == "one\ntwo"


def test_a_file_is_completed(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "my photo.png").touch()
    assert desk.read(f"/image {tmp_path}/my\t{ENTER}") == f"/image {tmp_path}/my photo.png"
    assert desk.read(f"see {tmp_path}/my\t{ENTER}") == f"see {tmp_path}/my\\ photo.png"


def test_earlier_messages_come_back(desk: Desk) -> None:
    assert desk.read("one" + ALT_ENTER + "line" + ENTER) == "one\nline"
    assert desk.read("two" + ENTER) == "two"
    assert desk.read(UP + ENTER) == "two"
    assert desk.read(UP + UP + " more" + ENTER) == "one\nline more"
    assert desk.read(CTRL_R + "tw" + ENTER + ENTER) == "two"
    assert desk.history.get_strings() == ["one\nline", "two", "one\nline more", "two"]


def test_ctrl_c_and_ctrl_d(desk: Desk) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.read("half\x03")
    with pytest.raises(EOFError):
        desk.read("\x04")
    assert desk.read("ab\x1b[D\x04" + ENTER) == "a"  # within a text it deletes


def test_what_is_typed_during_an_answer_is_sent_next_if_it_has_an_enter(desk: Desk) -> None:
    desk.press("first" + ENTER + "second" + ENTER + "thi")
    desk.editor.poll()
    assert desk.read() == "first"
    desk.editor.poll()
    assert desk.read() == "second"
    assert desk.read("rd" + ENTER) == "third"


def test_a_paste_during_an_answer_may_come_in_parts(desk: Desk) -> None:
    desk.press("\x1b[200~one\ntw")
    desk.editor.poll()
    desk.press("o\x1b[201~")
    desk.editor.poll()
    assert desk.read("!" + ENTER) == "one\ntwo!"


def test_what_was_typed_before_an_interruption_is_not_sent(desk: Desk) -> None:
    desk.press("first" + ENTER + "second" + NEWLINE + ENTER)
    desk.editor.hold()
    assert desk.read("!" + ENTER) == "first\nsecond!"
    desk.editor.hold()
    assert desk.read("next" + ENTER) == "next"


def test_a_large_paste(desk: Desk) -> None:
    text = "\n".join(f"line {i} of a log" for i in range(3000))
    desk.press(f"\x1b[200~{text}\x1b[201~")
    assert desk.read(ENTER) == text


def test_ctrl_c_directly_behind_enter_counts(desk: Desk) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.read("never sent" + ENTER + "nor this\x03")
    assert desk.read("next" + ENTER) == "next"
