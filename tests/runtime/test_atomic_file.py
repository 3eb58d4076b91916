"""Files appear whole or not at all, with the permissions that a user expects."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from phirt.runtime import atomic_file
from phirt.runtime.atomic_file import atomic_write, write_text

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes, links and umasks are POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, "old"])
def test_the_file_is_there_with_its_content(tmp_path, before):
    path = tmp_path / "note"
    if before is not None:
        path.write_text(before)
    with atomic_write(path) as stream:
        stream.write(b"new")
        assert not path.exists() if before is None else path.read_text() == before
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["note"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_changes_where_writing_fails(tmp_path, error):
    path = tmp_path / "note"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as stream:
        stream.write(b"new")
        raise error
    assert (names(tmp_path), path.read_text()) == (["note"], "old")


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_nothing_changes_where_the_system_refuses(tmp_path, monkeypatch, call):
    path = tmp_path / "note"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else Path, call, refuse)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    monkeypatch.undo()
    assert (names(tmp_path), path.read_text()) == (["note"], "old")


@posix
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_have_what_the_umask_leaves(tmp_path, umask, expected):
    former = os.umask(umask)
    try:
        write_text(tmp_path / "note", "x")
    finally:
        os.umask(former)
    assert mode(tmp_path / "note") == expected


@posix
@pytest.mark.parametrize("kept", [0o600, 0o640, 0o755])
def test_permissions_of_a_file_are_kept(tmp_path, kept):
    (tmp_path / "note").write_text("old")
    (tmp_path / "note").chmod(kept)
    write_text(tmp_path / "note", "new")
    assert mode(tmp_path / "note") == kept


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_behind_a_link_its_file_is_replaced(tmp_path, exists):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "note"
    if exists:
        target.write_text("old")
    (tmp_path / "link").symlink_to(target)
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "new"
    assert names(tmp_path / "elsewhere") == ["note"]


@pytest.mark.parametrize("name", ["n" * 255, "ß" * 127, "日" * 85])
def test_the_longest_names_can_be_written(tmp_path, name):
    write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]


def test_text_is_utf_8_with_line_ends_as_they_are(tmp_path):
    write_text(tmp_path / "note", "Größe\nzwei\r\n")
    assert (tmp_path / "note").read_bytes() == "Größe\nzwei\r\n".encode()


@posix
def test_content_and_name_are_brought_to_the_disk(tmp_path, monkeypatch):
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_text(tmp_path / "note", "x")
    assert synced == ["file", "folder"]


@posix
def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path, monkeypatch):
    real = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_text(tmp_path / "note", "x")
    atomic_file.sync_file(tmp_path / "note")
    assert (tmp_path / "note").read_text() == "x"
