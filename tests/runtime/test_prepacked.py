"""Prepared graphs: opened in place of the bundle's, with equal answers; damage and full disks cost time
only.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import phirt
from phirt import prepacked
from phirt.session import ort


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
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(1 << 40, 0, free))
        logits(bundle)
        assert len(list(cache.iterdir())) == kept


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
    os.utime(entry / "entry.json", (month, month))
    logits(bundle)  # uses the entry, which makes it young again
    chat = phirt.load(bundle, threads=1)
    chat.encoder.features(chat.prepare_media([np_picture()], [])[0], "vision")  # prepares another graph
    assert entry.is_dir()
    assert fresh.is_dir()
    assert not old.exists()
    assert not abandoned.exists()


def np_picture():
    from PIL import Image

    return Image.new("RGB", (40, 40), (10, 200, 30))


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
