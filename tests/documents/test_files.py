"""What of a folder is looked into, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phirt_apps.documents.files import DocumentError, list_files, opened
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
