"""A library whose index fails: what costs nothing but the question, and what makes a new index."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from phirt.errors import ConfigError
from phirt_apps.answer import Request
from phirt_apps.documents import index as index_module
from phirt_apps.documents import library as library_module
from phirt_apps.documents.library import Library
from phirt_apps.output import Output

LOCKED = sqlite3.OperationalError("database is locked")
FULL = sqlite3.OperationalError("database or disk is full")
DAMAGED = sqlite3.DatabaseError("database disk image is malformed")


class Words:
    """As much of a conversation as a library asks for: one token for each word."""

    messages: tuple[Any, ...] = ()
    system = None
    generator = SimpleNamespace(
        manifest=SimpleNamespace(geometry=SimpleNamespace(context=4096)),
        count_tokens=lambda text, *rest, **more: SimpleNamespace(
            text=len(text.split()), total=len(text.split())
        ),
    )


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> Iterator[Library]:
    monkeypatch.setenv("PHIRT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pump.md").write_text("# Pump\n\nThe filter is washed every two weeks.\n")
    (folder / "empty.txt").write_text("")
    with Library(folder, None, Output(io.StringIO(), said)) as opened:
        yield opened


def _ask(library: Library) -> list[str]:
    _, citations = library.ask(Request("filter?", {}), Words())  # type: ignore[arg-type]
    return [one.file for one in citations]


def _fail_once(monkeypatch: pytest.MonkeyPatch, place: object, name: str, error: Exception) -> None:
    real = getattr(place, name)
    left = [error]

    def fail(*arguments: object) -> object:
        if left:
            raise left.pop()
        return real(*arguments)

    monkeypatch.setattr(place, name, fail)


@pytest.mark.parametrize("where", ["update", "search"])
@pytest.mark.parametrize("error", [LOCKED, FULL, sqlite3.ProgrammingError("closed")])
def test_a_passing_fault_costs_the_question_and_not_the_index(
    library: Library, monkeypatch: pytest.MonkeyPatch, said: io.StringIO, where: str, error: Exception
) -> None:
    assert _ask(library) == ["pump.md"]
    before = library._index
    said.truncate(0)
    monkeypatch.setattr(library_module, "discard", None)
    _fail_once(monkeypatch, library_module, where, error)
    with pytest.raises(ConfigError, match=f"the index of the documents cannot be used: {error}"):
        _ask(library)
    assert _ask(library) == ["pump.md"]
    assert library._index is before and "read" not in said.getvalue()


@pytest.mark.parametrize("where", ["update", "search"])
def test_lines_of_the_update_that_fills_a_new_index(
    library: Library, monkeypatch: pytest.MonkeyPatch, said: io.StringIO, where: str
) -> None:
    """They are about files that the old index said nothing of, and come once."""
    _fail_once(monkeypatch, library_module, where, DAMAGED)
    assert _ask(library) == ["pump.md"]
    assert said.getvalue().count("empty.txt is empty\n") == 1
    assert "as before" not in said.getvalue()
    assert "documents: 1 read; 1 passages\n" in said.getvalue()


def test_an_index_that_cannot_be_replaced_at_once(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    _ask(library)
    _fail_once(monkeypatch, library_module, "update", DAMAGED)
    _fail_once(monkeypatch, library_module, "discard", PermissionError("held by a scanner"))
    with pytest.raises(ConfigError, match="is damaged, and cannot be removed: held by a scanner"):
        _ask(library)
    assert _ask(library) == ["pump.md"]


def test_a_folder_that_is_away_for_a_moment(library: Library, tmp_path: Path) -> None:
    _ask(library)
    library.root.rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="cannot be listed: No such file or directory"):
        _ask(library)
    (tmp_path / "away").rename(library.root)
    assert _ask(library) == ["pump.md"]


def test_an_index_of_another_version_is_made_anew(
    library: Library, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    _ask(library)
    library.close()
    monkeypatch.setattr(index_module, "_VERSION", index_module._VERSION + 1)
    with Library(library.root, None, Output(io.StringIO(), said)) as again:
        assert _ask(again) == ["pump.md"]
