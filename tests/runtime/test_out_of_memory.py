"""Where memory runs out, that is what is said, not that a bundle or a picture is damaged (case 05)."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import phirt
from phirt.errors import BundleError, MediaError, OutOfMemoryError, PhirtError, out_of_memory
from phirt.generate.kv_cache import KVCache
from phirt.runtime import session as sessions
from phirt.runtime.system import has_address_space

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux limits the addresses of a process")
KILO = 1024


def caused(outer: Exception, inner: BaseException) -> Exception:
    try:
        raise outer from inner
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("bad allocation"),
        RuntimeError("can't start new thread"),
        RuntimeError(
            "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9"
        ),
        RuntimeError("PosixThread pthread_create failed, error code: 12 error msg: Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
        ImportError("Exception caught: std::bad_alloc"),
        caused(BundleError("the graph is damaged"), RuntimeError("std::bad_alloc")),
        caused(ValueError("no"), caused(OSError("no"), MemoryError())),
    ],
)
def test_lacking_memory_is_recognized_however_it_is_worded(error):
    found = out_of_memory(error, "open the door")
    assert isinstance(found, PhirtError)
    assert isinstance(found, MemoryError)
    assert str(found).startswith("not enough memory to open the door: close other programs")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file or directory"),
        RuntimeError("the protobuf is damaged"),
        MediaError("out of memory.jpg is damaged or incomplete"),  # a name
        caused(BundleError("std::bad_alloc.onnx is damaged"), ValueError("no graph")),
    ],
)
def test_other_errors_stay_what_they_are(error):
    assert out_of_memory(error) is None


def test_an_error_that_says_so_already_is_kept():
    first = OutOfMemoryError("not enough memory for that")
    assert out_of_memory(first) is first
    assert out_of_memory(caused(ValueError("no"), first)) is first


def test_a_graph_that_finds_no_memory_is_not_called_damaged(bundle, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model failed:std::bad_alloc")

    monkeypatch.setattr(sessions.ort, "InferenceSession", refuse)
    with pytest.raises(OutOfMemoryError, match="not enough memory to open the decoder graph"):
        phirt.load(bundle, threads=1)


def test_a_run_that_finds_no_memory_says_so(decoder):
    session, _ = decoder

    class Refusing:
        def run(self, *_: object) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 99999")

    mine = object.__new__(sessions.Session)
    vars(mine).update(vars(session), _session=Refusing())
    with pytest.raises(OutOfMemoryError, match="not enough memory to run the decoder graph"):
        mine.run({})


def test_keys_and_values_that_find_no_memory_leave_an_empty_cache(monkeypatch):
    from phirt.runtime import device

    cache = KVCache(1, 1, 4, 4096)
    real = device.empty_array

    def refuse(shape: tuple[int, ...], dtype: object) -> object:
        if shape[2] > 256:
            raise MemoryError
        return real(shape, dtype)

    monkeypatch.setattr(device, "empty_array", refuse)
    with pytest.raises(OutOfMemoryError, match="not enough memory to keep keys and values of 1024 tokens"):
        cache.reserve(1000)
    assert (cache.length, cache.capacity) == (0, 256)


def test_a_picture_that_finds_no_memory_is_not_called_damaged(model, tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(path)

    def refuse(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", refuse)
    with pytest.raises(OutOfMemoryError, match=r"not enough memory to decode .*photo\.png"):
        model.chat().send("what", images=[path]).text()


@linux
def test_room_for_addresses_is_told():
    assert has_address_space(0)
    assert has_address_space(1 << 20)
    assert not has_address_space(1 << 60)
    assert not has_address_space(1 << 80)


# What is lacking differs: modules, threads, weights, a decoded picture. The outcome is one line or an answer.
@linux
@pytest.mark.parametrize("limit", [60_000, 200_000, 300_000, 330_000, 360_000, 500_000])
def test_a_command_with_little_memory_answers_or_says_so_in_one_line(tmp_path, limit):
    path = tmp_path / "big.png"
    Image.new("RGB", (6000, 5000), (90, 120, 150)).save(path)
    command = [sys.executable, "-m", "phirt_apps", "chat", "--image", str(path), "What?"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit * KILO, limit * KILO)),
        cwd=Path(__file__).parent,
    )  # fmt: skip
    if ended.returncode:
        (line,) = ended.stderr.splitlines()
        assert (ended.returncode, ended.stdout) == (1, "")
        assert line.startswith("error: not enough memory to ")
    else:
        assert ended.stdout


def test_a_recording_is_refused_before_a_library_ends_the_process(model, clip, monkeypatch):
    from phirt.encoders import media_encoder

    model.generator.encoder.cache.clear()
    monkeypatch.setattr(media_encoder, "has_address_space", lambda nbytes: False)
    with pytest.raises(OutOfMemoryError, match="not enough memory to process the audio"):
        model.chat().send("what", audio=[clip]).text()
