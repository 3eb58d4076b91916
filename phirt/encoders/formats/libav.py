"""Sound in the formats of phones, browsers and cameras (MPEG-4, WebM, AMR, video files), through PyAV.

Knows the package `av`, which is an extra: whoever has not installed it is told so. Which demuxer reads a file
is decided before, by its bytes, so that no file can have itself read as a playlist of others.
"""

from __future__ import annotations

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
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _translated(error) from error
    tracks = container.streams.audio
    if not tracks:
        container.close()
        raise UndecodableError("it has no sound track")
    track = container.streams.best("audio") or tracks[0]
    rate, channels = int(getattr(track, "rate", 0) or 0), int(getattr(track, "channels", 0) or 0)
    if rate < 1 or channels < 1:
        container.close()
        raise UndecodableError("its sound track cannot be decoded")
    seconds = _declared_seconds(container, track, demuxer)
    frames = None if seconds is None else round(seconds * rate)
    return Sound(rate, channels, frames, _blocks(container, track, demuxer, seconds))


def _declared_seconds(container: Any, track: Any, demuxer: str) -> float | None:
    """How long the track is by the container's header; None where that is not said."""
    if demuxer not in _TIMED:
        return None
    if track.duration is not None and track.time_base is not None:
        return float(track.duration * track.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration) / 1e6
    return None


def _blocks(container: Any, track: Any, demuxer: str, seconds: float | None) -> Iterator[Block]:
    """Raises DamagedError where decoding fails once sound has come, or plainly less comes than declared."""
    import av

    rate = int(track.rate)
    resampler = av.AudioResampler(format="fltp", layout=track.layout, rate=rate)
    waiting: list[Block] = []
    count = done = 0
    with container:
        for frame in _frames(container, track, demuxer):
            for piece in resampler.resample(frame):
                block = np.ascontiguousarray(piece.to_ndarray().T, dtype=np.float32)
                waiting.append(block)
                count += block.size
                done += len(block)
            if count >= BLOCK:
                yield np.concatenate(waiting)
                waiting, count = [], 0
        if waiting:
            yield np.concatenate(waiting)
    if seconds is not None and done < (seconds * 0.98 - 0.25) * rate:
        raise DamagedError(f"declares {seconds:.1f} seconds of sound and holds {done / rate:.1f}")


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
    except (av.error.FFmpegError, OSError, ValueError) as error:
        cause = _translated(error)
        raise (DamagedError(f"cannot be decoded to its end ({cause})") if heard else cause) from error
    if failure is not None and demuxer not in _BARE_FRAMES:
        raise DamagedError("cannot be decoded to its end") from failure
    if not heard:
        raise UndecodableError("its sound track cannot be decoded")


def _translated(error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return error
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UndecodableError(str(reason))
