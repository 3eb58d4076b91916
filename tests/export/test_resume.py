"""An export that is interrupted, killed or doubled: what is left goes on to the same bytes, and never loads
before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from small_models import config, random_model, save_checkpoint

from phirt.bundle.files import load_manifest, verify_bundle
from phirt.errors import BundleError, ConfigError
from phirt_export import encoders, exporter, staging
from phirt_export.exporter import export_bundle
from phirt_export.graphs import data_file
from phirt_export.graphs.data_file import DataFile
from phirt_export.identity import identity
from phirt_export.journal import Entry, Journal
from phirt_export.staging import staged_bundle

SETTINGS = {"method": "rtn", "bits": 4, "encoder_bits": 4, "name": "model"}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are made by fork, to be quick")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(random_model(config()), tmp_path_factory.mktemp("resume") / "checkpoint")


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> dict[str, str]:
    """Hashes of an uninterrupted export."""
    return hashes(export_bundle(checkpoint, tmp_path_factory.mktemp("whole") / "bundle", **SETTINGS))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """The small model is journaled as often as a large one."""
    monkeypatch.setattr(data_file, "_SYNC_BYTES", 20_000)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def partial_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


class Moments:
    """Counts what an export does to the disk, and ends it at one of these moments, half way through."""

    def __init__(self, at: int | None, end) -> None:
        self.count, self._at, self._end = 0, at, end

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        write = DataFile._put

        def half(file, data):
            if self._is_due():
                write(file, bytes(data)[: len(data) // 2])
                file._file.flush()
                self._end()
            write(file, data)

        patch.setattr(DataFile, "_put", half)
        for owner, name in (
            (Journal, "_write"), (exporter, "write_manifest"), (staging, "sync_file"), (staging, "_discard"),
            (Path, "rename"), (Path, "replace"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function):
        def counted(*args, **kwargs):
            if self._is_due():
                self._end()
            return function(*args, **kwargs)

        return counted

    def _is_due(self) -> bool:
        self.count += 1
        return self.count - 1 == self._at


def run_until(checkpoint: Path, output: Path, moment: int, number: signal.Signals) -> int:
    """Export in a process that gets a signal at a moment; returns its exit status, negative for a signal."""

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            Moments(moment, lambda: os.kill(os.getpid(), number)).watch(patch)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with contextlib.suppress(KeyboardInterrupt):
                export_bundle(checkpoint, output, **SETTINGS)
                os._exit(0)
        os._exit(130)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def moments_in(checkpoint: Path, output: Path) -> int:
    """How many moments an export has."""
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(None, None)
        moments.watch(patch)
        export_bundle(checkpoint, output, **SETTINGS)
    return moments.count


def never_incomplete(output: Path, whole: dict[str, str]) -> bool:
    """Whether the output is there; what loads there is all of the bundle."""
    for folder in (output, partial_of(output) / "bundle"):
        try:
            load_manifest(folder)
        except BundleError:
            continue
        assert hashes(folder) == whole
    return output.exists()


@forks
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ten_random_interruptions_each_end_in_the_same_bundle(checkpoint, whole, tmp_path, number):
    count = moments_in(checkpoint, tmp_path / "counted")
    draw = random.Random(int(number))
    for moment in [*(draw.randrange(count) for _ in range(10)), count - 12, count - 3, count - 1]:
        output = tmp_path / f"bundle-{moment}"
        status = run_until(checkpoint, output, moment, number)
        assert status == (-9 if number == signal.SIGKILL else 130), f"moment {moment} of {count}"
        never_incomplete(output, whole)
        assert hashes(export_bundle(checkpoint, output, **SETTINGS)) == whole
        assert not partial_of(output).exists()


@forks
def test_ten_interruptions_of_one_export_end_in_the_same_bundle(checkpoint, whole, tmp_path):
    draw, output = random.Random(3), tmp_path / "bundle"
    kept = []
    for _ in range(10):
        number = draw.choice([signal.SIGKILL, signal.SIGINT])
        status = run_until(checkpoint, output, draw.randrange(20, 70), number)
        if status == 0:
            break
        assert not never_incomplete(output, whole)
        kept.append(sum(1 for _ in (partial_of(output) / "journal").open()) - 1)
    assert kept == sorted(kept) and kept[-1] > 50
    steps = []
    assert hashes(export_bundle(checkpoint, output, progress=steps.append, **SETTINGS)) == whole
    assert steps[-1].kept > 0.1 * steps[-1].weights and steps[-1].done == steps[-1].weights
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def interrupted(checkpoint: Path, output: Path, moment: int, **changes) -> None:
    """Stop an export in this process after a number of writes."""

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        Moments(moment, stop).watch(patch)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(checkpoint, output, **{**SETTINGS, **changes})


def kept_by(checkpoint: Path, output: Path, **changes) -> int:
    """How many weights an export takes over from an interrupted one."""
    steps = []
    export_bundle(checkpoint, output, progress=steps.append, **{**SETTINGS, **changes})
    return steps[-1].kept


def test_other_settings_or_weights_start_anew(checkpoint, tmp_path):
    output = tmp_path / "b"
    interrupted(checkpoint, output, 200)
    assert kept_by(checkpoint, output) > 0
    interrupted(checkpoint, output, 200)
    assert kept_by(checkpoint, output, bits=8) == 0
    assert load_manifest(output).quantization["bits"] == 8
    interrupted(checkpoint, output, 200)
    assert kept_by(checkpoint, output, method="mse") == 0
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    interrupted(other, output, 200)
    weights = other / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert kept_by(other, output) == 0


def test_damaged_leftovers_are_written_again(checkpoint, whole, tmp_path):
    output = tmp_path / "b"
    for damage in (
        lambda folder: (folder / "bundle/decoder.data").write_bytes(b"short"),
        lambda folder: flip(folder / "bundle/decoder.data", 70_000),
        lambda folder: (folder / "bundle/decoder.data").unlink(),
        lambda folder: shutil.rmtree(folder / "bundle"),
        lambda folder: (folder / "journal").write_bytes((folder / "journal").read_bytes()[:-40]),
        lambda folder: (folder / "journal").write_bytes(os.urandom(1000)),
        lambda folder: (folder / "journal").unlink(),
        lambda folder: reorder(folder / "journal"),
    ):
        interrupted(checkpoint, output, 300)
        damage(partial_of(output))
        assert hashes(export_bundle(checkpoint, output, **SETTINGS)) == whole
        shutil.rmtree(output)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def reorder(path: Path) -> None:
    """Entries that are well-formed, but of pieces that no export writes in this order."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    entries = [json.loads(line) for line in lines]
    for entry in entries[20:]:
        entry["key"] = "another"
    path.write_bytes(header + b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))


def test_a_full_disk_keeps_what_is_finished_and_says_so(checkpoint, whole, tmp_path, monkeypatch):
    output = tmp_path / "b"

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encoders, "build_vision", full)
        with pytest.raises(BundleError, match=r"No space left.*same command goes on"):
            export_bundle(checkpoint, output, **SETTINGS)
    assert not output.exists()
    assert hashes(export_bundle(checkpoint, output, **SETTINGS)) == whole


def test_a_mistake_found_late_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def damaged(*args, **kwargs):
        raise ConfigError("the weights hold values that are not finite")

    monkeypatch.setattr(encoders, "build_speech", damaged)
    with pytest.raises(ConfigError, match="not finite"):
        export_bundle(checkpoint, tmp_path / "b", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


@forks
def test_two_exports_to_one_output_do_not_meet(checkpoint, whole, tmp_path):
    output = tmp_path / "b"
    ready, go = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def wait(step) -> None:
        if step.tensors:  # from the first weight on the output is taken
            ready.set()
            go.wait(30)

    process = multiprocessing.get_context("fork").Process(
        target=lambda: export_bundle(checkpoint, output, progress=wait, **SETTINGS)
    )
    process.start()
    assert ready.wait(30)
    with pytest.raises(ConfigError, match="another export"):
        export_bundle(checkpoint, output, bits=8, method="rtn")
    go.set()
    process.join()
    assert process.exitcode == 0 and hashes(output) == whole
    assert {detail for _, detail in verify_bundle(output)} == {"ok"}
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_former_bundle_comes_back_after_a_crash_between_two_renames(checkpoint, tmp_path):
    output = export_bundle(checkpoint, tmp_path / "b", bits=8, method="rtn")
    former = hashes(output)
    interrupted(checkpoint, output, 200)
    output.rename(partial_of(output) / "former")
    with pytest.raises(KeyboardInterrupt), staged_bundle(output, "another"):
        assert hashes(output) == former
        raise KeyboardInterrupt
    assert hashes(output) == former and not partial_of(output).exists()


@pytest.mark.parametrize("kind", ["file", "link", "folder", "inner link"])
def test_a_place_that_is_somebody_elses_is_left_alone(checkpoint, tmp_path, kind):
    output, elsewhere = tmp_path / "b", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years of work")
    if kind == "file":
        partial_of(output).write_text("mine")
    elif kind == "link":
        partial_of(output).symlink_to(elsewhere)
    elif kind == "inner link":
        partial_of(output).mkdir()
        (partial_of(output) / "bundle").symlink_to(elsewhere)
    else:
        shutil.copytree(elsewhere, partial_of(output))
    with pytest.raises(ConfigError, match="choose another output"):
        export_bundle(checkpoint, output, bits=4, method="rtn")
    assert (elsewhere / "thesis.txt").exists() and partial_of(output).exists()


def test_a_manifest_that_is_none_is_not_overwritten(checkpoint, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="is not a bundle"):
        export_bundle(checkpoint, tmp_path / "b", bits=4, method="rtn")


def test_ctrl_c_between_two_renames_puts_the_former_bundle_back(checkpoint, tmp_path, monkeypatch):
    output = export_bundle(checkpoint, tmp_path / "b", bits=8, method="rtn")
    former, rename = hashes(output), Path.rename

    def interrupt(path, target):
        if path == partial_of(output) / "bundle":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, output, bits=4, method="rtn")
    assert hashes(output) == former


def test_a_file_system_that_syncs_no_folders_is_no_error(checkpoint, tmp_path, monkeypatch):
    sync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert load_manifest(export_bundle(checkpoint, tmp_path / "b", bits=4, method="rtn"))


def test_folders_that_cannot_be_read_do_not_matter(checkpoint, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "c"))
    before = identity(folder, {})
    (folder / "lost+found").mkdir()
    (folder / "lost+found" / "x.json").write_text("{}")
    assert identity(folder, {}) != before
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "lost+found")
    assert identity(folder, {}) == before


def test_a_data_file_goes_on_after_a_piece_and_drops_what_was_not_journaled(tmp_path):
    def pieces(file: DataFile, upto: int) -> list[tuple[float, ...]]:
        notes = []
        for i in range(upto):
            array = np.full(3000 * (i + 1), i, np.float32)
            parts = [([array[:7], array[7:]], array.nbytes)]
            notes.append(file.append(f"w{i}", parts, lambda i=i: (i / 3,)).note)
        return notes

    journals = []
    for upto in (3, 5):
        journals.append(Journal(tmp_path / "journal", "same"))
        kept: list[str] = []
        with DataFile(tmp_path / "w.data", journals[-1], kept.append) as file:
            notes = pieces(file, upto)
        journals[-1].close()
        if upto == 3:
            with (tmp_path / "w.data").open("ab") as tail:
                tail.write(b"half a tensor")
    assert kept == ["w0", "w1", "w2"] and notes == [(i / 3,) for i in range(5)]
    with DataFile(tmp_path / "once.data") as once:
        pieces(once, 5)
    assert (tmp_path / "w.data").read_bytes() == (tmp_path / "once.data").read_bytes()
    assert file.sha256 == once.sha256 == hashlib.sha256((tmp_path / "once.data").read_bytes()).hexdigest()
    assert file.size == (tmp_path / "once.data").stat().st_size


WRONG = (
    ("number", -1),
    ("stop", "9"),
    ("lengths", 3),
    ("lengths", [1.5]),
    ("note", ["x"]),
    ("key", 1),
    ("x", 1),
)


@pytest.mark.parametrize("change", [dict([pair]) for pair in WRONG])
def test_a_line_that_no_export_wrote_is_no_entry(change):
    good = {"file": "w", "number": 0, "key": "k", "lengths": [4], "stop": 4, "sha256": "0", "note": [0.5]}
    assert Entry.from_line(json.dumps(good).encode()) == Entry("w", 0, "k", (4,), 4, "0", (0.5,))
    assert Entry.from_line(json.dumps({**good, **change}).encode()) is None
