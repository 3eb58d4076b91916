"""What of a folder is looked into, and what is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from phirt.errors import ConfigError
from phirt.runtime import own_folder
from phirt.runtime.own_folder import OwnFolder
from phirt_apps.documents import files
from phirt_apps.documents.files import DocumentError, TransientError, list_files, opened
from phirt_apps.documents.limits import LIMITS, Limits


def _names(root: Path, limits: Limits = LIMITS) -> list[str]:
    return [found.name for found in list_files(root, limits).found]


def test_text_markdown_and_pdf_at_any_depth(tmp_path: Path) -> None:
    for name in (
        "b.TXT",
        "a.md",
        "sub/deep/c.pdf",
        "README",
        "photo.jpg",
        "code.py",
        ".hidden.txt",
        ".git/d.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert _names(tmp_path) == ["README", "a.md", "b.TXT", "sub/deep/c.pdf"]


def test_a_document_alone(tmp_path: Path) -> None:
    path = tmp_path / "odd.name"
    path.write_text("x")
    assert _names(path) == ["odd.name"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A loop of folders, a link to a file elsewhere, one to nothing."""
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "secret.txt").symlink_to("/etc/passwd")
    (tmp_path / "nothing.md").symlink_to(tmp_path / "gone.md")
    (tmp_path / "a.txt").write_text("x")
    listing = list_files(tmp_path, LIMITS)
    assert [found.name for found in listing.found] == ["a.txt"]
    assert listing.left_out == [
        f"{name} is a link, which is not followed" for name in ("loop", "nothing.md", "secret.txt")
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    assert list_files(tmp_path, LIMITS).left_out == ["p.txt is no plain file"]
    with pytest.raises(DocumentError, match="is no plain file"), opened(tmp_path / "p.txt"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))).write_text("x")
    assert _names(tmp_path) == ["caf\\xe9.txt"]


def test_limits_are_said(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d/e/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    few = list_files(tmp_path, Limits(files=2))
    assert [found.name for found in few.found] == ["a.txt", "b.txt"]
    assert few.left_out == ["2 files are read at most; c.txt and what follows is not"]
    assert list_files(tmp_path, Limits(depth=2)).left_out == ["d/e lies deeper than 2 folders"]


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    (before,) = list_files(tmp_path, LIMITS).found
    os.utime(path, ns=(0, 1))
    (after,) = list_files(tmp_path, LIMITS).found
    assert before.stamp != after.stamp


def test_a_document_that_is_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.pdf").write_text("x")
    link = tmp_path / "link.pdf"
    link.symlink_to(tmp_path / "sub" / "a.pdf")
    (found,) = list_files(link, LIMITS).found
    assert found.name == "link.pdf"
    with opened(found.path, found.identity) as file:
        assert file.read() == b"x"
    (tmp_path / "folder").symlink_to(tmp_path / "sub", target_is_directory=True)
    assert _names(tmp_path / "folder") == ["a.pdf"]


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone cannot be listed: No such file or directory"):
        list_files(tmp_path / "gone", LIMITS)


def test_what_lies_where_nothing_can_be_seen_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be listed for a moment, as a share that is away."""
    for name in ("a.txt", "sub/b.txt", "sub2/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    real = OwnFolder.inner

    def away(folder: OwnFolder, name: str) -> OwnFolder:
        if name == "sub":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(folder, name)

    monkeypatch.setattr(OwnFolder, "inner", away)
    listing = list_files(tmp_path, LIMITS)
    assert [found.name for found in listing.found] == ["a.txt", "sub2/c.txt"]
    assert listing.left_out == ["sub/ cannot be listed: Input/output error"]
    assert not listing.is_gone("sub/b.txt") and listing.is_gone("sub2/d.txt") and listing.is_gone("b.txt")


def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    """Between the listing and the reading a folder is swapped for a link to one elsewhere."""
    inside, outside = tmp_path / "docs" / "sub", tmp_path / "elsewhere"
    for folder, text in ((inside, "mine"), (outside, "secret")):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(text)
    (found,) = list_files(tmp_path / "docs", LIMITS).found
    inside.rename(tmp_path / "moved")
    inside.symlink_to(outside, target_is_directory=True)
    with (
        pytest.raises(TransientError, match="was replaced by another file"),
        opened(found.path, found.identity),
    ):
        pass


@pytest.mark.skipif(not own_folder._BY_DESCRIPTOR, reason="folders are listed by their paths there")
def test_a_folder_that_becomes_a_link_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same swap, between looking at the folder and listing it."""
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("secret")
    real = files._enter

    def swap(within: OwnFolder, name: str, *rest: Any) -> None:
        (within.path / name).rmdir()
        (within.path / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        real(within, name, *rest)

    monkeypatch.setattr(files, "_enter", swap)
    listing = list_files(tmp_path / "docs", LIMITS)
    assert listing.found == [] and len(listing.left_out) == 1
    assert listing.left_out[0].startswith("sub/ cannot be listed: ")


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
def test_no_two_files_have_one_name(tmp_path: Path) -> None:
    r"""A byte that is no text, and a name that looks like what is shown for it."""
    for name in (b"a\xff", rb"a\xff", rb"a\\xff", rb"b\c"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x")
    assert sorted(_names(tmp_path)) == sorted([r"a\xff", r"a\\xff", r"a\\\\xff", r"b\c"])


def test_the_limit_of_files_is_said_once_and_of_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "d/b.jpg", "d/e/c.txt", "d/e/f.txt", "g.txt", "z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    listing = list_files(tmp_path, Limits(files=2))
    assert [found.name for found in listing.found] == ["a.txt", "d/e/c.txt"]
    assert listing.left_out == ["2 files are read at most; d/e/f.txt and what follows is not"]
    (tmp_path / "d/e/f.txt").unlink()
    (tmp_path / "g.txt").unlink()
    assert list_files(tmp_path, Limits(files=2)).left_out == []
