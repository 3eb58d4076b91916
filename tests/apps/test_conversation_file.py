"""`--conversation FILE`: a talk over several commands, and what happens when it cannot be kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import phirt
from phirt.chat import place

CUT_FILES = (
    "import resource, signal, sys; size = int(sys.argv.pop(1)); "
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "from phirt_apps.cli import main; main()"
)


def test_a_talk_goes_on_over_commands(bundle: Path, tmp_path: Path, run) -> None:
    path = tmp_path / "talk.phirt"
    first = run("chat", "-m", bundle, "--conversation", path, "--max-new-tokens", 5, "the quick")
    second = run("chat", "-m", bundle, "--conversation", path, "--max-new-tokens", 5, "--json", "brown fox")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    model = phirt.load(bundle)
    config = phirt.GenerationConfig(max_new_tokens=5)
    chat = model.chat()
    assert chat.send("the quick", config=config).text() == first.stdout.decode().removesuffix("\n")
    expected = chat.send("brown fox", config=config).result
    told = json.loads(second.stdout)
    assert (told["ids"], told["prompt_ids"]) == (list(expected.token_ids), list(expected.prompt_token_ids))
    assert told["usage"]["cached_tokens"] > 0  # the cache came from the file
    assert len(model.load_chat(path).messages) == 4


def test_a_failed_request_leaves_the_file_as_it_was(bundle: Path, tmp_path: Path, run) -> None:
    path = tmp_path / "talk.phirt"
    assert run("chat", "-m", bundle, "--conversation", path, "--max-new-tokens", 5, "hi").returncode == 0
    earlier = path.read_bytes()
    done = run("chat", "-m", bundle, "--conversation", path, "--image", tmp_path / "none.png", "hi")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert path.read_bytes() == earlier


@pytest.mark.parametrize(
    ("extra", "status", "told"),
    [
        (("--system", "Be brief."), 2, b"holds one"),
        (("-m", "nowhere"), 1, b"nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(
    bundle: Path, tmp_path: Path, run, extra: tuple[str, ...], status: int, told: bytes
) -> None:
    path = tmp_path / "talk.phirt"
    assert run("chat", "-m", bundle, "--conversation", path, "--max-new-tokens", 2, "hi").returncode == 0
    done = run("chat", "-m", bundle, "--conversation", path, *extra, "hi")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (status, b"", 1)
    assert told in done.stderr


def test_a_folder_that_does_not_exist_is_told_before_any_work(bundle: Path, tmp_path: Path, run) -> None:
    done = run("chat", "-m", bundle, "--conversation", tmp_path / "none" / "talk.phirt", "hi")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"is not a folder" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_no_room_to_save_costs_neither_the_answer_nor_the_file(bundle: Path, tmp_path: Path, run) -> None:
    """A limit on the size of files stands for the full disk: the same call fails at the same place."""
    path = tmp_path / "talk.phirt"
    assert run("chat", "-m", bundle, "--conversation", path, "--max-new-tokens", 2, "hi").returncode == 0
    earlier = path.read_bytes()
    limit = str(len(earlier) + 1024)
    chat = ("chat", "-m", str(bundle), "--conversation", str(path))
    done = subprocess.run(
        [sys.executable, "-c", CUT_FILES, limit, *chat, "--max-new-tokens", "300", "the quick brown fox"],
        capture_output=True,
        input=b"",
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stdout) > 1 and done.stdout.endswith(b"\n")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(b"error: ") and done.stderr.count(b"\n") == 2  # the other one: the answer is cut
    assert b"talk.phirt" in done.stderr and b"File too large" in done.stderr
    assert path.read_bytes() == earlier
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.phirt"]


def test_two_processes_on_one_conversation_take_turns(bundle: Path, tmp_path: Path) -> None:
    """The second goes on with what the first one saved, and says why it waits."""
    path = tmp_path / "talk.phirt"
    command = [sys.executable, "-m", "phirt", "chat", "-m", str(bundle), "--conversation", str(path)]
    with place.reserve(path):
        running = [
            subprocess.Popen(
                [*command, "--max-new-tokens", "5", text],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for text in ("one", "two")
        ]
        for process in running:
            assert process.stderr is not None
            assert b"another phirt is using" in process.stderr.readline()
    for process in running:
        assert process.wait(60) == 0
    messages = phirt.load(bundle).load_chat(path).messages
    assert sorted(message.content for message in messages[::2]) == ["one", "two"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.phirt"]


def test_a_place_where_nothing_can_be_saved_is_told_before_any_work(
    bundle: Path, tmp_path: Path, run
) -> None:
    (tmp_path / "notes.txt").write_text("no conversation")
    for where in (tmp_path / "notes.txt", tmp_path, Path("/dev/full"), Path("/proc/none/talk.phirt")):
        done = run("chat", "-m", bundle / "nowhere", "--conversation", where, "hi")
        assert (done.returncode, done.stdout) == (1, b""), where
        assert done.stderr.count(b"\n") == 1 and b"nowhere" not in done.stderr, done.stderr
    assert (tmp_path / "notes.txt").read_text() == "no conversation"


def test_a_session_waits_for_the_one_that_has_the_conversation(
    bundle: Path, tmp_path: Path, terminal
) -> None:
    path = tmp_path / "talk.phirt"
    first = terminal("chat", "-m", bundle, "--conversation", path)
    first.wait("leaves")
    second = terminal("chat", "-m", bundle, "--conversation", path)
    second.wait("another phirt is using")
    first.type("\x04")
    assert first.finish() == 0
    second.wait("leaves")
    second.type("\x04")
    assert second.finish() == 0
