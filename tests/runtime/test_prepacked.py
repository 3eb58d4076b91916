"""Prepared graphs: opened in place of the bundle's, with equal answers; damage and full disks cost time
only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import Tiny, write_bundle

import phirt
from phirt.errors import BundleError
from phirt.runtime import prepared as prepacked
from phirt.runtime.session import ort


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for graphs of any size."""
    monkeypatch.setenv(prepacked.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(prepacked, "_WORTHWHILE_BYTES", 0)
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
    return phirt.load(bundle, threads=1, **options).new_engine().prefill([5, 20, 30, 40]).copy()


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.startswith(".")]


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
        return chat.send("see", images=[photo], audio=[clip], config=config).result.ids

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
        assert (len(list(cache.iterdir())), len(prepared)) == (kept, kept)


def test_a_failure_while_preparing_is_not_repeated_for_a_day(bundle, cache, monkeypatch):
    tried = []

    def fail(path: Path) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(prepacked, "_sync", fail)
        for _ in range(2):
            assert logits(bundle, on_prepare=lambda *what: tried.append(what)).shape == (512,)
    (note,) = cache.iterdir()
    assert (note.suffix, len(tried)) == (".failed", 1)
    yesterday = time.time() - 86401
    os.utime(note, (yesterday, yesterday))
    logits(bundle)
    (entry,) = cache.iterdir()  # the note is gone
    assert entry.is_dir()


def test_damaged_weights_are_refused_before_they_are_kept(own_bundle, cache):
    data = own_bundle / "decoder.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    with pytest.raises(BundleError, match=r"decoder\.data: sha256 is"):
        logits(own_bundle)
    assert list(cache.iterdir()) == []
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
        assert staging is not None
        for name in ("model.onnx", "model.data"):
            shutil.copyfile(folder / name, staging / name)
    assert (folder / "model.onnx").stat().st_ino == kept
    assert list(cache.iterdir()) == [folder]
    assert not entry.has_failed()


def test_what_ended_processes_left_half_done_goes_at_the_next_start(bundle, cache):
    logits(bundle)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    orphan, running = cache / f".staging-{ended.pid}-x", cache / f".staging-{os.getpid()}-x"
    for folder in (orphan, running):
        folder.mkdir()
    logits(bundle)
    assert running.is_dir()
    assert not orphan.exists()


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


def test_what_was_not_used_for_long_goes(bundle, cache):
    logits(bundle)
    (entry,) = entries(cache)
    old, abandoned, fresh = cache / ("0" * 32), cache / ".staging-old", cache / ".staging-new"
    shutil.copytree(entry, old)
    for folder in (abandoned, fresh):
        folder.mkdir()
    month = time.time() - 31 * 86400
    os.utime(old / "entry.json", (month, month))
    os.utime(abandoned, (month, month))
    logits(bundle)
    assert entry.is_dir()
    assert fresh.is_dir()
    assert not old.exists()
    assert not abandoned.exists()


def test_the_default_place_is_the_systems(monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.delenv(prepacked.VARIABLE)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path)
    assert prepacked._root() == tmp_path / "prepacked"


def test_the_listing_is_what_lies_there(bundle, cache):
    logits(bundle)
    (entry,) = entries(cache)
    listed = json.loads((entry / "entry.json").read_text())
    assert listed == {name: (entry / name).stat().st_size for name in ("model.onnx", "model.data")}
