"""Recordings as people have them, as mono samples: whole within a model's limits, or piece by piece.

Knows which module of `formats` reads which file, and what to say of one that none reads. Knows nothing of
what an encoder makes of the samples.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import Limits
from phirt.encoders.formats import boxes, flac, iff, libav, mpeg, ogg, riff
from phirt.encoders.formats.signatures import HEAD, FileType, identify
from phirt.encoders.formats.sound import (
    Block,
    DamagedError,
    MissingPackageError,
    Part,
    Sound,
    UndecodableError,
    read_at,
    size_of,
)
from phirt.encoders.samples import MonoMix, SampleSource, from_arrays
from phirt.encoders.source import FileSource, content_key, open_source, read_source
from phirt.errors import MediaError, not_enough_memory
from phirt.runtime.native_calls import native_calls

Samples = npt.NDArray[np.float32]
T = TypeVar("T")

_MIN_RATE, _MAX_RATE = 8000, 384_000
_MAX_CHANNELS = 64
_SILENCE = 10 ** (-90 / 20)  # peak below -90 dBFS: less than one step of a 16-bit recording
_BUILT_IN = "WAV, FLAC, Ogg, MP3, AIFF, AU or CAF"
_PACKAGES = {
    "av": "the package av (phirt's extra `media`): pip install av",
}

_logger = logging.getLogger("phirt.media")


@dataclass(frozen=True)
class Clip:
    """A whole recording: mono samples float32 [n] at `rate` Hz, a key of its content, a name for messages."""

    samples: Samples
    rate: int
    key: str
    name: str


AudioSource = FileSource | SampleSource | Clip
"""A recording: a file (path, bytes, open file), or samples and their rate in Hz: `(samples, 16000)`; a
Clip is what was read of one before."""


class AudioReader:
    """A recording that is opened: its rate and length are known, its samples come as they are asked for.

    Close it, or use it in a `with` block.
    """

    def __init__(self, name: str, stream: BinaryIO | None, open_sound: Callable[[], Sound]) -> None:
        self.name = name
        self._stream = stream
        self._end: Callable[[], None] | None = None
        # In the main thread Ctrl-C could be raised inside a decoder that calls back for more bytes, and would
        # be lost there. So the decoder works in a thread of its own, and the main thread only waits.
        main = threading.current_thread() is threading.main_thread()
        self._worker = ThreadPoolExecutor(1, "phirt-decoder") if main else None
        try:
            self._sound = self._run(open_sound)
            self._end = getattr(self._sound.blocks, "close", None)
            _check_format(self._sound.rate, self._sound.channels, name)
        except BaseException:
            self.close()
            raise
        for note in self._sound.notes:
            _logger.warning("%s: %s", name, note)

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self._sound.rate

    @property
    def seconds(self) -> float | None:
        """How long it lasts by its header; None where that is not known."""
        return None if self._sound.frames is None else self._sound.frames / self._sound.rate

    def blocks(self) -> Iterator[Samples]:
        """The samples in order, mono float32 [n]; once. Raises MediaError where the recording is damaged."""
        mix = MonoMix()
        while (block := self._run(lambda: next(self._sound.blocks, None))) is not None:
            if len(block):
                yield mix(block)

    def close(self) -> None:
        """Ends the decoder and closes the file."""
        if self._worker is not None:
            self._worker.shutdown()
        if self._end is not None:
            self._end()
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with native_calls:
                return work()

        try:
            return guarded() if self._worker is None else self._worker.submit(guarded).result()
        except MemoryError as error:
            raise not_enough_memory(f"decode {self.name}") from error
        except OSError as error:  # a stick pulled out, a share gone
            raise MediaError(
                f"{self.name} cannot be read: {error.strerror or error}; check the file and where it lies"
            ) from error
        except DamagedError as error:
            raise MediaError(
                f"{self.name} {error}; it is damaged or incomplete: save or record it again"
            ) from error
        except UndecodableError as error:
            raise MediaError(
                f"{self.name} is no recording that can be read ({error}); {_remedy()}"
            ) from error


def open_audio(source: AudioSource, limits: Limits) -> AudioReader:
    """Opens a recording of any length. Raises MediaError."""
    if isinstance(source, Clip):
        clip = source
        return AudioReader(clip.name, None, lambda: _sound_of(clip.samples[:, None], clip.rate))
    if isinstance(source, tuple | np.ndarray):
        samples, rate = from_arrays(source)
        return AudioReader("the given samples", None, lambda: _sound_of(samples, rate))
    stream, name = open_source(source, "audio", limits.media_bytes)
    return _opened(stream, name)


def read_clip(source: AudioSource, limits: Limits) -> Clip:
    """Reads a recording that a model takes at once. Raises MediaError, also where it is longer.

    A Clip, which is a piece of something that was read before, is taken as it is.
    """
    if isinstance(source, Clip):
        return source
    if isinstance(source, tuple | np.ndarray):
        samples, rate = from_arrays(source)
        with AudioReader("the given samples", None, lambda: _sound_of(samples, rate)) as recording:
            key = content_key(b"samples", str((rate, samples.shape)).encode(), samples.tobytes())
            return Clip(_whole(recording, limits), rate, key, recording.name)
    data, name = read_source(source, "audio", limits.media_bytes)
    samples, rate = decode(data, name, limits)
    return Clip(samples, rate, content_key(b"audio", data), name)


def decode(data: bytes, name: str, limits: Limits) -> tuple[Samples, int]:
    """Mono samples float32 [n] of a file's content, and their rate in Hz.

    Reads block by block, so that memory follows what is really there and not what a header claims.
    """
    with _opened(io.BytesIO(data), name) as recording:
        return _whole(recording, limits), recording.rate


def check_samples(samples: Samples, name: str) -> None:
    """Refuses what no model can hear: NaN, infinities, silence. Raises MediaError."""
    if not np.isfinite(samples).all():
        raise MediaError(
            f"{name} holds samples that are no numbers (NaN or infinite); record or convert it again"
        )
    if is_silent(samples):
        raise MediaError(f"{name} is silent: no sample reaches -90 dBFS; check the recording")


def is_silent(samples: Samples) -> bool:
    """Whether no sample reaches -90 dBFS."""
    return not len(samples) or float(np.abs(samples).max()) < _SILENCE


def _whole(recording: AudioReader, limits: Limits) -> Samples:
    longest = int(limits.audio_seconds * recording.rate)
    if recording.seconds is not None and recording.seconds * recording.rate > longest + recording.rate:
        _refuse_length(recording, limits)  # a second more than the limit: a header may be a little wrong
    blocks, count = [], 0
    for block in recording.blocks():
        blocks.append(block)
        count += len(block)
        if count > longest:
            _refuse_length(recording, limits)
    if count == 0:
        raise MediaError(f"{recording.name} holds no samples; give a complete recording")
    return np.concatenate(blocks)


def _refuse_length(recording: AudioReader, limits: Limits) -> NoReturn:
    lasts = "" if recording.seconds is None else f" (it lasts {recording.seconds:.1f})"
    raise MediaError(
        f"{recording.name} is longer than {limits.audio_seconds:g} seconds{lasts}, the limit of this bundle; "
        "cut it into parts, or write it down with `phirt transcribe`, which takes any length"
    )


def _opened(stream: BinaryIO, name: str) -> AudioReader:
    try:
        return AudioReader(name, stream, lambda: _open_sound(stream, name))
    except BaseException:
        stream.close()
        raise


def _open_sound(stream: BinaryIO, name: str) -> Sound:
    found, start = identify(read_at(stream, 0, HEAD)), 0
    if found.key == "mp3" and read_at(stream, 0, 3) == b"ID3":
        start = mpeg.after_tags(stream, 0)
        behind = identify(read_at(stream, start, HEAD))
        found = behind if behind.kind == "sound" else found
    if found.key in ("unknown", "zeros") and _has_frames(stream):
        return mpeg.open_sound(stream)
    if start and found.key not in ("mp3", "flac", "aac"):
        stream = Part(stream, start, size_of(stream) - start)  # type: ignore[assignment]  # reads and seeks
    readers: dict[str, Callable[[], Sound]] = {
        "wav": lambda: riff.open_sound(stream),
        "aiff": lambda: iff.open_aiff(stream),
        "au": lambda: iff.open_au(stream),
        "caf": lambda: iff.open_caf(stream),
        "flac": lambda: flac.open_sound(stream, start),
        "ogg": lambda: ogg.open_sound(stream),
        "mp3": lambda: mpeg.open_sound(stream),
    }
    try:
        if found.key in readers:
            return readers[found.key]()
        if found.key in libav.DEMUXERS:
            return _with_libav(stream, found)
    except MissingPackageError as error:
        raise MediaError(_needs(name, found, str(error))) from error
    raise MediaError(_foreign(name, found))


def _with_libav(stream: BinaryIO, found: FileType) -> Sound:
    notes = boxes.check_whole(stream, found.key)
    sound = libav.open_sound(stream, libav.DEMUXERS[found.key])
    return Sound(sound.rate, sound.channels, sound.frames, sound.blocks, notes)


def _has_frames(stream: BinaryIO) -> bool:
    """Whether MPEG audio begins somewhere behind what is not known: old files begin with anything."""
    try:
        return mpeg.survey(stream, 0, size_of(stream)).frames > 3
    except UndecodableError:
        return False


def _sound_of(samples: Block, rate: int) -> Sound:
    return Sound(rate, samples.shape[1], len(samples), iter((samples,)))


def _needs(name: str, found: FileType, package: str) -> str:
    return (
        f"{name} is {found.name}; reading it needs {_PACKAGES[package]}, or convert it: ffmpeg -i IN OUT.wav"
    )


def _foreign(name: str, found: FileType) -> str:
    if found.kind == "picture":
        return f"{name} is {found.name}, a picture and no recording; attach it as an image"
    if found.kind == "other":
        return f"{name} is {found.name}, no recording that can be read; {_remedy()}"
    return f"{name} is {found.name}, which phirt does not read; {_remedy()}"


def _remedy() -> str:
    more = "" if _installed() else " (m4a, WebM, AMR and videos with: pip install av)"
    return f"accepted: {_BUILT_IN}{more}; convert it: ffmpeg -i IN OUT.wav"


def _installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("av") is not None


def _check_format(rate: int, channels: int, name: str) -> None:
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise MediaError(f"{name} has {rate} samples a second, accepted: {_MIN_RATE} to {_MAX_RATE}")
    if not 1 <= channels <= _MAX_CHANNELS:
        raise MediaError(f"{name} has {channels} channels, accepted: 1 to {_MAX_CHANNELS}")
