"""Prepared graphs: opened in place of the bundle's, with equal answers; damage and full disks cost time
only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import Tiny, write_bundle

import phirt
from phirt.errors import BundleError
from phirt.runtime import prepared as prepacked
from phirt.runtime.session import ort

LAID_OUT = {"CACHEDIR.TAG", ".lock"}  # what lies in every cache folder that is in use


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for graphs of any size."""
    monkeypatch.setenv(prepacked.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(prepacked, "_WORTHWHILE_BYTES", 0)
    prepacked._warn_once.cache_clear()
    return tmp_path / "cache" / "prepacked"


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """Paths of the graphs that onnxruntime opened, in order."""
    paths: list[Path] = []
    real = ort.InferenceSession

    def record(path, **options):
        paths.append(Path(path))
        return real(path, **options)

    monkeypatch.setattr(ort, "InferenceSession", record)
    return paths


def logits(bundle: Path, **options) -> np.ndarray:
    return phirt.load(bundle, threads=1, **options).generator.new_engine().prefill([5, 20, 30, 40]).copy()


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name not in LAID_OUT]


def test_the_second_start_opens_the_prepared_graph(bundle, cache, opened):
    prepared: list[tuple[str, int]] = []
    first = logits(bundle, on_prepare=lambda *what: prepared.append(what))
    (entry,) = entries(cache)
    assert [graph for graph, _ in prepared] == ["decoder"]
    assert prepared[0][1] == (bundle / "decoder.data").stat().st_size
    assert opened == [bundle / "decoder.onnx", entry / "model.onnx"]
    second = logits(bundle, on_prepare=lambda *what: prepared.append(what))
    assert len(prepared) == 1
    assert opened[2:] == [entry / "model.onnx"]
    np.testing.assert_array_equal(first, second)


def test_answers_are_those_of_the_bundle(bundle, cache, monkeypatch, photo, clip):
    prepared: list[str] = []

    def answer() -> tuple[int, ...]:
        chat = phirt.load(bundle, threads=1, on_prepare=lambda graph, _: prepared.append(graph)).chat()
        config = phirt.GenerationConfig(max_new_tokens=8)
        return chat.send("see", images=[photo], audio=[clip], config=config).result.token_ids

    expected = answer()
    assert {"decoder", "vision"} <= set(prepared)
    monkeypatch.setenv(prepacked.VARIABLE, "off")
    assert answer() == expected


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.onnx", "cut"),
        ("model.onnx", "gone"),
        ("model.onnx", "garbled"),
        ("model.data", "cut"),
        ("model.data", "gone"),
        ("entry.json", "cut"),
        ("entry.json", "gone"),
        ("entry.json", "garbled"),
    ],
)
def test_a_damaged_entry_is_replaced(bundle, cache, file, damage):
    expected = logits(bundle)
    (entry,) = entries(cache)
    whole = (entry / file).read_bytes()
    if damage == "gone":
        (entry / file).unlink()
    else:
        (entry / file).write_bytes(whole[:-1] if damage == "cut" else b"\xff" * len(whole))
    for _ in range(2):
        np.testing.assert_array_equal(logits(bundle), expected)
    assert (entry / file).read_bytes()[:16] == whole[:16]
    assert (entry / file).stat().st_size == len(whole)


def test_off_and_small_graphs_leave_no_trace(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv(prepacked.VARIABLE, str(tmp_path / "cache"))
    logits(bundle)  # far below 64 MB
    monkeypatch.setattr(prepacked, "_WORTHWHILE_BYTES", 0)
    monkeypatch.setenv(prepacked.VARIABLE, "off")
    logits(bundle)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_no_error(bundle, tmp_path, cache):
    (tmp_path / "cache").write_text("a file")
    assert logits(bundle).shape == (512,)
    assert (tmp_path / "cache").read_text() == "a file"


def test_a_full_disk_is_no_error(bundle, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = 3 * (bundle / "decoder.data").stat().st_size
    for free, kept in ((needed - 1, 0), (needed, 1)):
        prepared: list[object] = []
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(1 << 40, 0, free))
        logits(bundle, on_prepare=lambda *what, prepared=prepared: prepared.append(what))
        assert (len(entries(cache)), len(prepared)) == (kept, kept)


def test_a_failure_while_preparing_is_not_repeated_for_a_day(bundle, cache, monkeypatch):
    tried = []

    def fail(path: Path) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(prepacked, "sync_file", fail)
        for _ in range(2):
            assert logits(bundle, on_prepare=lambda *what: tried.append(what)).shape == (512,)
    (note,) = entries(cache)
    assert (note.suffix, len(tried)) == (".failed", 1)
    yesterday = time.time() - 86401
    os.utime(note, (yesterday, yesterday))
    logits(bundle)
    (entry,) = entries(cache)  # the note is gone
    assert entry.is_dir()


def test_damaged_weights_are_refused_before_they_are_kept(own_bundle, cache):
    data = own_bundle / "decoder.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    with pytest.raises(BundleError, match=r"decoder\.data: sha256 is"):
        logits(own_bundle)
    assert entries(cache) == []
    data.write_bytes(whole)
    logits(own_bundle)
    assert len(entries(cache)) == 1


def test_an_entry_with_another_graph_is_replaced(bundle, cache, tmp_path):
    expected = logits(bundle)
    (entry,) = entries(cache)
    (tmp_path / "other").mkdir()
    logits(write_bundle(tmp_path / "other", Tiny(layers=1), vision=False, speech=False))
    (other,) = [path for path in entries(cache) if path != entry]
    shutil.rmtree(entry)
    shutil.copytree(other, entry)
    for _ in range(2):
        np.testing.assert_array_equal(logits(bundle), expected)
    assert (entry / "model.data").stat().st_size > (other / "model.data").stat().st_size


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_a_cache_that_others_can_write_to_is_not_used(bundle, cache, opened):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    logits(bundle)
    assert opened == [bundle / "decoder.onnx"]
    assert list(cache.iterdir()) == []


def test_a_cache_that_may_only_be_read_is_used(bundle, cache, opened, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    logits(bundle)
    opened.clear()
    monkeypatch.setattr(os, "utime", refuse)
    logits(bundle)
    assert [path.name for path in opened] == ["model.onnx"]


def test_an_entry_that_another_process_has_finished_meanwhile_stays(bundle, cache):
    logits(bundle)
    (folder,) = entries(cache)
    entry = prepacked.Entry(folder, weights=1)
    kept = (folder / "model.onnx").stat().st_ino
    with entry.staged() as staging:
        assert staging is None
    assert (folder / "model.onnx").stat().st_ino == kept
    assert entries(cache) == [folder]
    assert not entry.has_failed()


HOLD_LOCK = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


# Case 14: what another container prepares is told by its lock, not by a process id.
def test_what_another_process_prepares_is_left_alone(bundle, cache, opened, caplog):
    logits(bundle)
    (entry,) = entries(cache)
    staging = cache / f".staging-{entry.name}-abcdefgh"
    entry.rename(staging)
    (staging / "entry.json").unlink()
    opened.clear()
    command = [sys.executable, "-c", HOLD_LOCK, str(cache / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with caplog.at_level("INFO", "phirt"):
            logits(bundle)  # neither waits nor prepares it a second time
        assert "another process is at work there" in caplog.text
        assert opened == [bundle / "decoder.onnx"]
        assert {path.name for path in staging.iterdir()} == {"model.onnx", "model.data"}
        other.stdin.close()
    logits(bundle)  # the other one has ended without finishing it
    assert entries(cache) == [entry]


def test_threads_that_open_at_once_prepare_once(bundle, cache):
    prepared: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        options = {"on_prepare": lambda graph, _: prepared.append(graph)}
        answers = list(pool.map(lambda _: logits(bundle, **options), range(4)))
    assert prepared == ["decoder"]
    assert len(entries(cache)) == 1
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])


def test_another_bundle_graph_runtime_or_cpu_has_another_entry(bundle, cache, monkeypatch):
    manifest = phirt.load(bundle, threads=1).manifest
    shutil.rmtree(cache)

    def folder(graph: str = "decoder", runtime: str = "1") -> Path:
        found = prepacked.find_entry(manifest, manifest.graphs[graph], runtime)
        assert found is not None
        return found.folder

    assert folder() == folder()
    different = {folder(), folder("vision"), folder(runtime="2")}
    monkeypatch.setattr(prepacked, "_cpu", lambda: ("another",))
    assert len(different | {folder()}) == 4


def test_the_default_place_is_the_systems(monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.delenv(prepacked.VARIABLE)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path)
    assert prepacked._root() == tmp_path / "prepacked"


# Case 08: a user without a name, in an environment without HOME.
def test_without_a_home_folder_there_is_no_cache(bundle, monkeypatch, opened, caplog):
    monkeypatch.setattr(prepacked, "_WORTHWHILE_BYTES", 0)

    def unknown(self: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.setenv(prepacked.VARIABLE, "~/cache")
    logits(bundle)
    assert opened == [bundle / "decoder.onnx"]
    assert "this user has no home folder" in caplog.text


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(prepacked.VARIABLE, "~/x")
    assert prepacked._root() == tmp_path / "x" / "prepacked"


# Case 15: said, and once.
def test_why_the_cache_is_not_used_is_said_once(bundle, cache, caplog):
    cache.mkdir(parents=True)
    cache.chmod(0o2775)
    for _ in range(2):
        logits(bundle)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("phirt.prepared", "WARNING")
    assert record.getMessage() == (
        f"graphs are not prepared for this machine: {cache} belongs to another user, or others may write to "
        "it; PHIRT_CACHE names another folder, or is 'off'"
    )


def test_why_preparing_failed_is_said(bundle, cache, caplog, monkeypatch):
    monkeypatch.setattr(prepacked, "sync_file", lambda path: path.open("x"))
    logits(bundle)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "the decoder graph was not prepared for this machine: [Errno 17]" in record.getMessage()


def test_the_listing_is_what_lies_there(bundle, cache):
    logits(bundle)
    (entry,) = entries(cache)
    states = {name: (entry / name).stat() for name in ("model.onnx", "model.data")}
    assert json.loads((entry / "entry.json").read_text()) == {
        "entry": entry.name,
        "files": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
    }


def test_an_entry_that_an_older_version_has_written_is_used(bundle, cache, opened):
    logits(bundle)
    (entry,) = entries(cache)
    sizes = {name: (entry / name).stat().st_size for name in ("model.onnx", "model.data")}
    (entry / "entry.json").write_text(json.dumps(sizes))
    for name in LAID_OUT:
        (cache / name).unlink()
    opened.clear()
    logits(bundle)
    assert opened == [entry / "model.onnx"]
    assert {path.name for path in cache.iterdir()} == {entry.name, *LAID_OUT}


def test_an_entry_that_finds_no_memory_stays(bundle, cache, monkeypatch):
    logits(bundle)
    (entry,) = entries(cache)
    before = {path.name: path.stat().st_ino for path in entry.iterdir()}

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("std::bad_alloc")

    with monkeypatch.context() as patch, pytest.raises(phirt.OutOfMemoryError):
        patch.setattr(ort, "InferenceSession", refuse)
        logits(bundle)
    assert {path.name: path.stat().st_ino for path in entry.iterdir()} == before


def test_the_log_tells_where_a_graph_was_opened_from(bundle, cache, caplog, monkeypatch):
    with caplog.at_level("DEBUG", "phirt"):
        logits(bundle)
        logits(bundle)
        monkeypatch.setenv(prepacked.VARIABLE, "off")
        logits(bundle)
    told = r"the decoder graph is open after [\d.]+ s, from the (\w+).*: CPU\w+, 1 threads"
    places = re.findall(told, caplog.text)
    assert places == ["cache", "cache", "bundle"]
