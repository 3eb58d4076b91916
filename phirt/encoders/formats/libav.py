"""Sound in the formats of phones, browsers and cameras (MPEG-4, WebM, AMR, video files), through PyAV.

Knows the package `av`, which is an extra: whoever has not installed it is told so. Which demuxer reads a file
is decided before, by its bytes, so that no file can have itself read as a playlist of others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from phirt.encoders.formats.sound import (
    BLOCK,
    Block,
    DamagedError,
    MissingPackageError,
    Part,
    Sound,
    UndecodableError,
)

DEMUXERS = {
    "mp4": "mov",
    "matroska": "matroska",
    "amr": "amr",
    "aac": "aac",
    "asf": "asf",
    "avi": "avi",
    "flv": "flv",
    "mpeg": "mpeg",
    "mpegts": "mpegts",
    "w64": "w64",
    "wav": "wav",
    "wavpack": "wv",
    "ape": "ape",
    "tta": "tta",
    "dsf": "dsf",
    "ac3": "ac3",
    "voc": "voc",
    "sphere": "nist",
}
_BARE_FRAMES = ("aac", "amr", "mp3")
_MOST_SKIPPED = 100
_MOST_CHANNELS = 8
_PLENTY = 64 << 20  # bytes; where so many are free, a refusal was the file's fault
_TIMED = ("mov", "matroska", "avi", "asf")  # their headers say how long they are; of others it is an estimate


def open_sound(stream: BinaryIO | Part, demuxer: str) -> Sound:
    """The best sound track. Raises MissingPackageError without PyAV; UndecodableError, DamagedError."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("av") from error
    stream.seek(0)
    try:
        container = av.open(stream, mode="r", format=demuxer, metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise _translated(error) from error
    try:
        tracks = container.streams.audio
        if not tracks:
            raise UndecodableError("it has no sound track")
        track = container.streams.best("audio") or tracks[0]
        seconds = _declared_seconds(container, track, demuxer)
        frames = _frames(container, track, demuxer)
        first = next(frames)  # the header may name half the rate that the decoder will deliver
        rate, channels = int(first.sample_rate), int(first.layout.nb_channels)
    except BaseException:
        container.close()
        raise
    samples = None if seconds is None else round(seconds * rate)
    return Sound(rate, channels, samples, _blocks(container, itertools.chain([first], frames), rate, seconds))


def _declared_seconds(container: Any, track: Any, demuxer: str) -> float | None:
    """How long the track is by the container's header; None where that is not said."""
    if demuxer not in _TIMED:
        return None
    if track.duration is not None and track.time_base is not None:
        return float(track.duration * track.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration) / 1e6
    return None


def _blocks(container: Any, frames: Iterator[Any], rate: int, seconds: float | None) -> Iterator[Block]:
    """Raises DamagedError where the rate changes, or plainly less comes than declared."""
    waiting: list[Block] = []
    count = done = 0
    with container:
        for frame in frames:
            if frame.sample_rate != rate:
                raise DamagedError(f"changes from {rate} to {frame.sample_rate} samples a second")
            block = _samples(frame)
            done += len(block)
            if waiting and waiting[0].shape[1] != block.shape[1]:  # a stream may change its channels
                yield np.concatenate(waiting)
                waiting, count = [], 0
            waiting.append(block)
            count += block.size
            if count >= BLOCK:
                yield np.concatenate(waiting)
                waiting, count = [], 0
        if waiting:
            yield np.concatenate(waiting)
    if seconds is not None and done < (seconds * 0.98 - 0.25) * rate:
        raise DamagedError(f"declares {seconds:.1f} seconds of sound and holds {done / rate:.1f}")


def _samples(frame: Any) -> Block:
    channels = int(frame.layout.nb_channels)
    if not 1 <= channels <= _MOST_CHANNELS:  # PyAV reads past the planes of more
        raise UndecodableError(f"it has {channels} channels, accepted: 1 to {_MOST_CHANNELS}")
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    with np.errstate(all="ignore"):
        if values.dtype.kind == "f":
            return np.ascontiguousarray(values, dtype=np.float32)
        full = np.float32(2.0 ** (8 * values.dtype.itemsize - 1))
        shift = full if values.dtype.kind == "u" else np.float32(0)
        return np.ascontiguousarray((values.astype(np.float32) - shift) / full)


def _frames(container: Any, track: Any, demuxer: str) -> Iterator[Any]:
    """Decoded frames. What fails before the first one is skipped: the stream was joined in the middle.

    So is the very last packet of a format that is nothing but frames: a recording that was cut inside one.
    """
    import av

    heard, skipped, failure = False, 0, None
    try:
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                skipped += 1
                if failure is not None or skipped > _MOST_SKIPPED:
                    raise DamagedError("cannot be decoded to its end") from error
                failure = error if heard else None
                continue
            if frames and failure is not None:
                raise DamagedError("cannot be decoded to its end") from failure
            heard = heard or bool(frames)
            yield from frames
    except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:
        cause = _translated(error)
        raise (DamagedError(f"cannot be decoded to its end ({cause})") if heard else cause) from error
    if failure is not None and demuxer not in _BARE_FRAMES:
        raise DamagedError("cannot be decoded to its end") from failure
    if not heard:
        raise UndecodableError("its sound track cannot be decoded")


def _translated(error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        try:
            bytearray(_PLENTY)
        except MemoryError:
            return error
        return UndecodableError("it asks for more memory than any recording needs")
    return UndecodableError(str(getattr(error, "strerror", None) or error or type(error).__name__))
