"""The place of a saved conversation: one process at a time, tried before anything is answered."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from phirt.chat import place
from phirt.errors import ConversationError

HOLDER = """
import sys
from phirt.chat import place
with place.reserve(sys.argv[1]):
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
    with pytest.raises(ConversationError, match="is being used by another phirt"), place.reserve(path):
        pass
    process.communicate("\n")
    with place.reserve(path):
        pass


def test_the_second_process_may_wait(held):
    path, process = held

    def end():
        process.stdin.write("\n")
        process.stdin.flush()

    with place.reserve(path, wait=True, on_wait=end):
        assert not path.exists()


def test_a_killed_process_holds_nothing(held):
    path, process = held
    process.kill()
    process.wait()
    with place.reserve(path):
        pass


def test_places_are_tried_before_the_answer(model, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8 a photo")
    for name in ("photo.jpg", "missing/talk", "x" * 300, "a\0b", "."):
        with pytest.raises(ConversationError), place.reserve(tmp_path / name):
            pass
    longest = "x" * 255
    with place.reserve(tmp_path / longest):
        model.chat().save(tmp_path / longest)
    assert {item.name for item in tmp_path.iterdir()} == {"photo.jpg", longest}


def test_one_process_holds_a_place_once(tmp_path):
    with place.reserve(tmp_path / "x"):
        with pytest.raises(ConversationError, match="used by another phirt"), place.reserve(tmp_path / "x"):
            pass
        with place.reserve(tmp_path / "y"):
            pass


def test_behind_a_link_it_is_one_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "talk")
    with place.reserve(tmp_path / "talk"):
        with (
            pytest.raises(ConversationError, match="used by another phirt"),
            place.reserve(tmp_path / "link"),
        ):
            pass
        assert (tmp_path / ".talk.lock").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["link"]


def test_a_file_of_the_users_own_with_the_locks_name_stays(tmp_path):
    path, own = tmp_path / "package", tmp_path / ".package.lock"
    own.write_text("somebody else's")
    with pytest.raises(ConversationError, match=r"\.package\.lock beside it is no lock"), place.reserve(path):
        pass
    assert own.read_text() == "somebody else's"


def test_a_link_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / ".talk.lock").symlink_to(tmp_path / "other")
    with pytest.raises(ConversationError, match="cannot be saved"), place.reserve(tmp_path / "talk"):
        pass
    assert not (tmp_path / "other").exists()


COUNTER = """
import sys, time
from pathlib import Path
from phirt.chat import place
path = Path(sys.argv[1])
for _ in range(20):
    with place.reserve(path, wait=True):
        inside = path.with_suffix(".inside")
        inside.touch(exist_ok=False)
        inside.unlink()
"""


def test_many_processes_take_turns(tmp_path):
    """Each removes the lock's file when it ends; nobody may hold one that has no name any more."""
    command = [sys.executable, "-c", COUNTER, str(tmp_path / "talk")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_conversation_is_its_owners_alone(model, tmp_path):
    former = os.umask(0o022)
    try:
        model.chat().save(tmp_path / "talk")
    finally:
        os.umask(former)
    assert (tmp_path / "talk").stat().st_mode & 0o777 == 0o600
