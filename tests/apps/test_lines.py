"""What a person may type where a file name is expected, and what the Tab key offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from phirt_apps.lines import completions, typed_path

COMMANDS = ["/image", "/audio", "/reset", "/save", "/stats"]
WITH_PATH = ["/image", "/audio", "/save"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with files of awkward names; the current folder too."""
    for name in ("plain.png", "my photo.png", "it's.png", 'a "b".png', "back\\slash.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("plain.png", "plain.png"),
        ("  plain.png  ", "plain.png"),
        ("my photo.png", "my photo.png"),
        ("'my photo.png'", "my photo.png"),
        ('"my photo.png"', "my photo.png"),
        ("my\\ photo.png", "my photo.png"),
        ("it's.png", "it's.png"),
        ("it\\'s.png", "it's.png"),
        ('a "b".png', 'a "b".png'),
        ("back\\slash.png", "back\\slash.png"),
        ("~/my photo.png", "my photo.png"),
        ("~/my\\ photo.png", "my photo.png"),
        ("'~/my photo.png'", "my photo.png"),
        ("sub/deep.png", "sub/deep.png"),
    ],
)
def test_a_path_may_be_typed_in_many_ways(folder: Path, typed: str, name: str) -> None:
    assert (folder / typed_path(typed)).resolve() == (folder / name).resolve()


@pytest.mark.parametrize(
    "typed", ["no such file.png", "'unclosed", "~nobody-has-this-name/x", "a\0b", "x" * 5000, "''"]
)
def test_a_path_to_nothing_is_returned_and_not_an_error(folder: Path, typed: str) -> None:
    assert isinstance(typed_path(typed), Path)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/s", ["/save ", "/stats"]),
        ("/image", ["/image "]),
        ("/image my", ["/image my photo.png"]),
        ("/image ~/my", ["/image ~/my photo.png"]),
        ("/image su", ["/image sub/"]),
        ("/image sub/", ["/image sub/deep.png"]),
        ("/image nothing/", []),
        ("/reset pl", []),
        ("hello", []),
        ("hello pl", []),
    ],
)
def test_completion(folder: Path, line: str, found: list[str]) -> None:
    assert completions(line, COMMANDS, WITH_PATH) == found
