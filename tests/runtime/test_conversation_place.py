"""The place of a saved conversation: one process at a time, tried before anything is answered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from phirt.chat import store
from phirt.errors import ConversationError

HOLDER = """
import sys
from phirt.chat import store
with store.reserve(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def held(tmp_path):
    """A place, and the process that has it until it reads a line."""
    path = tmp_path / "talk.phirt"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield path, process
        process.kill()


def test_the_second_process_is_told(held):
    path, process = held
    with pytest.raises(ConversationError, match="is being used by another phirt"), store.reserve(path):
        pass
    process.communicate("\n")
    with store.reserve(path):
        pass


def test_the_second_process_may_wait(held):
    path, process = held

    def end():
        process.stdin.write("\n")
        process.stdin.flush()

    with store.reserve(path, wait=True, on_wait=end):
        assert not path.exists()


def test_a_killed_process_holds_nothing(held):
    path, process = held
    process.kill()
    process.wait()
    with store.reserve(path):
        pass


def test_places_are_tried_before_the_answer(model, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8 a photo")
    for place in ("photo.jpg", "missing/talk", "x" * 300, "a\0b", "."):
        with pytest.raises(ConversationError), store.reserve(tmp_path / place):
            pass
    longest = "x" * 255
    with store.reserve(tmp_path / longest):
        model.chat().save(tmp_path / longest)
    seen = {item.name for item in tmp_path.iterdir() if not item.name.startswith(".")}
    assert seen == {"photo.jpg", longest}


def test_one_process_holds_a_place_once(tmp_path):
    with store.reserve(tmp_path / "x"):
        with pytest.raises(ConversationError, match="used by another phirt"), store.reserve(tmp_path / "x"):
            pass
        with store.reserve(tmp_path / "y"):
            pass
