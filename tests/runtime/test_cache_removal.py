"""What the clean-up of the cache of prepared graphs removes, and what it must never touch (attack 01: a
user's own folder named `prepacked`, links, files added to an entry).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

import phirt
from phirt.runtime import prepared
from phirt.runtime.cache_folder import VARIABLE
from phirt.runtime.own_folder import OwnFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and owners are POSIX")
MONTHS = 90 * 86400
KEY = "0123456789abcdef" * 2


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for graphs of any size; not there yet."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(prepared, "_WORTHWHILE_BYTES", 0)
    prepared._warn_once.cache_clear()
    return tmp_path / "cache" / "prepacked"


def start(bundle: Path) -> None:
    phirt.load(bundle, threads=1)


def tree(folder: Path) -> dict[str, object]:
    """Every path below the folder with its content, without following links."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = path.readlink()
        else:
            found[str(path)] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


def age(*paths: Path) -> None:
    then = time.time() - MONTHS
    for path in paths:
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def entry(bundle, cache) -> Path:
    """An entry of the cache, as a start leaves it, under another key and long unused."""
    start(bundle)
    (made,) = [path for path in cache.iterdir() if path.is_dir()]
    other = cache / KEY
    made.rename(other)
    with OwnFolder(other) as folder:
        (other / "entry.json").write_text(json.dumps(prepared._listing(folder, KEY)))
    age(other / "entry.json", other)
    return other


def test_an_entry_that_was_not_used_for_long_goes(bundle, cache, entry):
    start(bundle)
    assert not entry.exists()
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_an_entry_that_was_used_stays(bundle, entry):
    os.utime(entry / "entry.json")
    start(bundle)
    assert (entry / "model.data").is_file()


def test_a_folder_that_was_there_before_is_not_used(bundle, cache, tmp_path, caplog):
    home = tmp_path / "home"
    (home / "docs").mkdir(parents=True)
    (home / "docs" / "letter.txt").write_text("dear")
    (cache / "thesis").mkdir(parents=True)
    (cache / "thesis" / "chapter1.txt").write_text("important")
    (cache / "photo.jpg").write_text("photo")
    (cache / "link").symlink_to(home)
    (cache / "node").mkdir()
    age(cache / "thesis", cache / "photo.jpg", cache / "node", home / "docs", cache / "link")
    before = tree(tmp_path)
    start(bundle)
    assert tree(tmp_path) == before
    assert "holds what phirt has not written ('link')" in caplog.text


def test_a_link_in_the_folders_place_is_not_followed(bundle, cache, tmp_path, caplog):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    age(home / "letter.txt")
    cache.parent.mkdir()
    cache.symlink_to(home)
    before = tree(tmp_path)
    start(bundle)
    assert tree(tmp_path) == before
    assert f"{cache} is a link" in caplog.text


def test_a_link_to_nowhere_and_a_file_are_not_used(bundle, cache, tmp_path, caplog):
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "nowhere")
    start(bundle)
    cache.unlink()
    cache.write_text("mine")
    start(bundle)
    assert cache.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert len(caplog.records) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_not_used(bundle, cache, caplog):
    cache.mkdir(parents=True)
    os.chown(cache, 1001, 1001)
    start(bundle)
    assert list(cache.iterdir()) == []
    assert "belongs to another user" in caplog.text


def foreign_file(entry: Path) -> None:
    (entry / "notes.txt").write_text("mine")


def foreign_folder(entry: Path) -> None:
    (entry / "more").mkdir()


def nested_entry(entry: Path) -> None:
    shutil.copytree(entry, entry / ("f" * 32))


def link_inside(entry: Path) -> None:
    (entry / "model.data").rename(entry.parents[2] / "elsewhere")
    (entry / "model.data").symlink_to(entry.parents[2] / "elsewhere")


def hard_link(entry: Path) -> None:
    os.link(entry / "model.data", entry.parents[2] / "mine")


def pipe_for_listing(entry: Path) -> None:
    (entry / "entry.json").unlink()
    os.mkfifo(entry / "entry.json")


def pipe_inside(entry: Path) -> None:
    os.mkfifo(entry / "pipe")


def pipe_for_weights(entry: Path) -> None:
    (entry / "model.data").unlink()
    os.mkfifo(entry / "model.data")


def listing_of_others(entry: Path) -> None:
    (entry / "entry.json").write_text('{"../../letter.txt": 4}')


def listing_without_times(entry: Path) -> None:
    sizes = {name: (entry / name).stat().st_size for name in ("model.onnx", "model.data")}
    (entry / "entry.json").write_text(json.dumps(sizes))


def listing_of_another_entry(entry: Path) -> None:
    text = (entry / "entry.json").read_text()
    (entry / "entry.json").write_text(text.replace(KEY, "e" * 32))


def listing_that_never_ends(entry: Path) -> None:
    (entry / "entry.json").write_text("[" * 100_000)


def other_content(entry: Path) -> None:
    whole = (entry / "model.data").read_bytes()
    (entry / "model.data").write_bytes(b"\x01" * len(whole))  # of the same size, written later


@pytest.mark.parametrize(
    "change",
    [
        foreign_file,
        foreign_folder,
        nested_entry,
        link_inside,
        hard_link,
        pipe_for_listing,
        pipe_inside,
        pipe_for_weights,
        listing_of_others,
        listing_without_times,
        listing_of_another_entry,
        listing_that_never_ends,
        other_content,
    ],
)
def test_an_old_folder_that_is_not_exactly_an_entry_stays(bundle, entry, change):
    change(entry)
    age(entry / "entry.json", entry)
    before = tree(entry)
    start(bundle)
    assert tree(entry) == before


@pytest.mark.parametrize(
    "name", ["thesis", "A" * 32, "0" * 31, "0" * 33, f"{KEY}.bak", f".staging-{KEY}", ".staging-7-abcdefgh"]
)
def test_other_names_are_left_alone(bundle, cache, entry, name):
    entry.rename(cache / name)
    before = tree(cache / name)
    start(bundle)
    assert tree(cache / name) == before


def test_links_and_files_beside_the_entries_stay(bundle, cache, tmp_path, entry):
    home = tmp_path / "home"
    entry.rename(home)
    (cache / KEY).symlink_to(home)  # an entry by its name, and by what lies behind the link
    (cache / f"{KEY}.failed").symlink_to(home / "model.data")
    (cache / f"{'f' * 32}.failed").write_text("a file of somebody")
    (cache / f".staging-{KEY}-abcdefgh").symlink_to(home)
    (cache / ("e" * 32)).write_text("a file")
    os.mkfifo(cache / f"{'a' * 32}.failed")
    age(*cache.iterdir())
    before = {path.name: path.lstat().st_ino for path in (*cache.iterdir(), *home.iterdir())}
    start(bundle)
    after = {path.name: path.lstat().st_ino for path in (*cache.iterdir(), *home.iterdir())}
    assert before.items() <= after.items()


def test_old_notes_of_failures_go(bundle, cache, entry):
    old, fresh = cache / f"{KEY}.failed", cache / f"{'f' * 32}.failed"
    old.touch()
    fresh.touch()
    age(old)
    start(bundle)
    assert not old.exists()
    assert fresh.exists()


def test_what_was_left_half_done_goes_unless_something_was_added(bundle, cache, entry):
    half, added = cache / f".staging-{KEY}-abcdefgh", cache / f".staging-{KEY}-bcdefghi"
    for folder in (half, added):
        folder.mkdir()
        (folder / "model.data").write_bytes(b"half")
    (added / "notes.txt").write_text("mine")
    start(bundle)
    assert not half.exists()
    assert tree(added) == {str(added / "model.data"): b"half", str(added / "notes.txt"): b"mine"}


@pytest.mark.parametrize("change", [foreign_file, link_inside, hard_link, pipe_inside])
def test_a_damaged_entry_with_something_else_in_it_is_not_replaced(bundle, cache, change):
    start(bundle)
    (made,) = [path for path in cache.iterdir() if path.is_dir()]
    change(made)
    (made / "model.onnx").write_bytes(b"damaged")
    before = tree(made)
    start(bundle)
    assert tree(made) == before


@pytest.mark.parametrize("kind", ["link", "hard link", "content", "folder"])
def test_a_lock_file_that_is_something_else_is_left_alone(bundle, cache, tmp_path, kind):
    start(bundle)
    lock, mine = cache / ".lock", tmp_path / "mine"
    lock.unlink()
    mine.write_text("mine")
    if kind == "link":
        lock.symlink_to(mine)
    elif kind == "hard link":
        os.link(mine, lock)
    elif kind == "content":
        lock.write_text("mine")
    else:
        lock.mkdir()
    start(bundle)
    assert mine.read_text() == "mine"
    assert kind != "content" or lock.read_text() == "mine"


def test_a_marker_of_another_program_is_respected(bundle, cache, caplog):
    cache.mkdir(parents=True)
    (cache / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# another program\n")
    start(bundle)
    assert [path.name for path in cache.iterdir()] == ["CACHEDIR.TAG"]
    assert "CACHEDIR.TAG in" in caplog.text
