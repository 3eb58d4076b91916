"""Updates that meet limits and faults: what is tried again, which room is given back, what is erased."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pdf_file import pdf

from phirt.errors import ConfigError
from phirt.runtime.own_folder import OwnFolder
from phirt_apps.documents import files, updating
from phirt_apps.documents import pdf as pdf_module
from phirt_apps.documents.index import Index
from phirt_apps.documents.limits import LIMITS, Limits
from phirt_apps.documents.updating import Update

PARAGRAPHS = [f"Paragraph {number} about opera. " * 30 for number in range(4)]  # each a passage of its own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "docs"
    place.mkdir()
    return place


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with contextlib.closing(Index(tmp_path / "index.sqlite")) as opened:
        yield opened


def _update(index: Index, folder: Path, limits: Limits = LIMITS) -> Update:
    return updating.update(index, folder, None, limits, lambda *progress: None)


def _write(path: Path, paragraphs: int, word: str = "") -> None:
    path.write_text("\n\n".join([*PARAGRAPHS[: paragraphs - 1], PARAGRAPHS[3] + word]))


def test_an_edit_at_the_limit_keeps_the_file(index: Index, folder: Path) -> None:
    """The room of its own passages is that of the edited ones."""
    limits = Limits(passages=3)
    _write(folder / "a.txt", 3)
    assert _update(index, folder, limits).lines == []
    _write(folder / "a.txt", 3, "edited")
    done = _update(index, folder, limits)
    assert (index.count(), done.read, done.lines) == (3, 1, [])
    assert len(index.matching("edited", 9)) == 1
    _write(folder / "a.txt", 1)
    _write(folder / "b.txt", 2)
    assert _update(index, folder, limits).lines == [] and index.count() == 3


@pytest.mark.parametrize("how", ["gone", "shorter", "no PDF reader"])
def test_what_was_cut_for_lack_of_room_is_read_when_there_is_some(
    index: Index, folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(passages=3)
    said = "is read in part: 3 passages are kept of a folder at most"
    first = folder / "a.txt"
    _write(first, 2)
    _write(folder / "b.txt", 2)
    _write(folder / "c.txt", 1)
    monkeypatch.setattr(updating, "_TICK_NS", 0)
    assert _update(index, folder, limits).lines == [f"b.txt {said}", f"c.txt {said}"]
    with monkeypatch.context() as patch:  # as long as there is no room they are not even opened
        patch.setattr(updating, "opened", None)
        assert _update(index, folder, limits).former == ["b.txt", "c.txt"]
    if how == "gone":
        first.unlink()
    elif how == "shorter":
        _write(first, 1)
    else:
        first.write_bytes(pdf([["one"]]))
        monkeypatch.setattr(pdf_module.importlib.util, "find_spec", lambda name: None)
    done = _update(index, folder, limits)
    assert done.lines == ([f"c.txt {said}"] if how == "shorter" else [])
    assert index.count_of("b.txt") == 2 and index.count() == 3


def test_no_more_is_cut_than_there_is_room_for(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(sections: Any) -> Iterator[Any]:
        for passage in real(sections):
            made.append(passage)
            yield passage

    real = updating.cut
    monkeypatch.setattr(updating, "cut", counted)
    (folder / "a.md").write_text("# a\nb\n" * 500)
    _update(index, folder, Limits(passages=2))
    assert (index.count(), len(made)) == (2, 3)


@pytest.mark.parametrize("change", ["edited", "gone", "after a stop"])
def test_what_is_taken_out_is_erased(
    index: Index, folder: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words lie in an index of words as well, where they are only marked as gone at first."""
    secret = folder / "secret.txt"
    secret.write_text("The password is xylophonequartz.")
    (folder / "b.txt").write_text("Nothing.")
    _update(index, folder)
    assert b"xylophonequartz" in (tmp_path / "index.sqlite").read_bytes()
    if change == "gone":
        secret.unlink()
    else:
        secret.write_text("Nothing either.")
    if change == "after a stop":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Index, "erase", _raise(KeyboardInterrupt()))
            _update(index, folder)
    _update(index, folder)
    data = (tmp_path / "index.sqlite").read_bytes()
    assert b"xylophon" not in data and b"password" not in data


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **named: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("where", ["open", "read", "process"])
def test_a_fault_of_the_system_is_not_kept(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    monkeypatch.setattr(updating, "_TICK_NS", 0)
    (folder / "a.pdf").write_bytes(pdf([["one"]]))
    place = {"open": (files.os, "open"), "read": (updating, "digest"), "process": (pdf_module, "_run")}[where]
    error = OSError(number, os.strerror(number))
    with monkeypatch.context() as patch:
        listed = files.list_files(folder, LIMITS)
        patch.setattr(updating, "list_files", lambda root, limits: listed)
        patch.setattr(*place, _raise(error))
        assert _update(index, folder).lines == [f"a.pdf cannot be read: {os.strerror(number)}"]
    assert _update(index, folder).read == 1


@pytest.mark.parametrize("pages", [b"", b'{"page": 1, "text": "one"}\n'])
def test_a_pdf_that_was_late_is_tried_again_after_a_while(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch, pages: bytes
) -> None:
    """The machine may have been busy; a file that is always late costs no minute at each question."""
    now = 1_900_000_000.0
    monkeypatch.setattr(updating.time, "time", lambda: now)
    (folder / "a.pdf").write_bytes(pdf([["one"], ["two"]]))
    with monkeypatch.context() as patch:
        patch.setattr(pdf_module, "_run", lambda file, limits: (pages, None))
        (line,) = _update(index, folder).lines
    assert line.endswith("it took longer than 60 s")
    assert _update(index, folder).former == ["a.pdf"]
    now += updating._RETRY_SECONDS
    done = _update(index, folder)
    assert (done.read, done.former, index.count()) == (1, [], 2)


def test_a_folder_that_is_away_keeps_its_index(
    index: Index, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole folder, or one in it."""
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("opera")
    (folder / "b.txt").write_text("tea")
    _update(index, folder)
    with pytest.raises(ConfigError, match="cannot be listed"):
        _update(index, tmp_path / "away")
    (folder / "b.txt").unlink()
    real = OwnFolder.inner
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    with monkeypatch.context() as patch:
        patch.setattr(
            OwnFolder,
            "inner",
            lambda within, name: _raise(error)() if name == "sub" else real(within, name),
        )
        done = _update(index, folder)
    assert done.dropped == 1 and done.lines == ["sub/ cannot be listed: Input/output error"]
    assert list(index.files()) == ["sub/a.txt"] and len(index.matching("opera", 9)) == 1


class Stopped:
    """A connection on which one statement is stopped, after it is done or instead of it."""

    def __init__(
        self, real: sqlite3.Connection, statement: str, error: BaseException, *, is_done: bool
    ) -> None:
        self._real, self._statement, self._error, self._is_done = real, statement, error, is_done

    def execute(self, statement: str, *values: object) -> object:
        """Runs it, but for the one that is stopped."""
        stopped = statement.startswith(self._statement)
        done = self._real.execute(statement, *values) if self._is_done or not stopped else None
        if stopped:
            raise self._error
        return done

    @property
    def in_transaction(self) -> bool:
        """As of the real one."""
        return self._real.in_transaction


@pytest.mark.parametrize(
    ("statement", "error", "is_done"),
    [
        ("BEGIN", KeyboardInterrupt(), True),
        ("BEGIN", sqlite3.OperationalError("database is locked"), False),
        ("COMMIT", sqlite3.OperationalError("database is locked"), False),
        ("COMMIT", KeyboardInterrupt(), True),
    ],
)
def test_a_change_that_is_stopped_leaves_no_transaction(
    index: Index, monkeypatch: pytest.MonkeyPatch, statement: str, error: BaseException, is_done: bool
) -> None:
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(index, "_connection", Stopped(index._connection, statement, error, is_done=is_done))
        index.put("a.txt", "1", "1", [])
    index.put("b.txt", "1", "1", [])  # which fails within a transaction
    assert list(index.files()) == (["a.txt"] if statement == "COMMIT" and is_done else []) + ["b.txt"]
