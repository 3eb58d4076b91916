"""MPEG audio (MP3 and its older layers): where its frames are, and how many there should be.

Knows frame headers, tags around them, and the length that an encoder notes in the first frame (ISO 11172-3,
13818-3; the notes are those of Xing and Fraunhofer). The decoding is miniaudio's, which writes nothing to the
terminal, or libav's where there is no miniaudio.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from phirt.encoders.formats import libav
from phirt.encoders.formats.sound import (
    BLOCK,
    Block,
    ByteReader,
    DamagedError,
    MissingPackageError,
    Part,
    Sound,
    UndecodableError,
    read_at,
    size_of,
)

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_KILOBITS = {  # by whether the version is MPEG-1, and the layer bits
    (True, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SYNC = re.compile(rb"\xff[\xe0-\xff]")
_MOST_JUNK = 1 << 20  # bytes without a frame, in a whole file, after which no further frame is looked for


class Header(NamedTuple):
    """One frame: its bytes, samples a channel, rate, channels, and the bits that all frames share."""

    size: int
    samples: int
    rate: int
    channels: int
    family: int


@dataclasses.dataclass(frozen=True)
class Survey:
    """What lies between `start` and `stop`: `frames` whole frames of sound, beside what was announced."""

    start: int
    stop: int
    first: Header
    frames: int
    declared: int | None
    cut: bool


def open_sound(stream: BinaryIO, start: int = 0, end: int | None = None) -> Sound:
    """Frames from `start` on. Raises DamagedError where fewer come than the first one announces."""
    found = survey(stream, start, size_of(stream) if end is None else end)
    if found.declared is not None and found.frames < found.declared - max(2, found.declared // 200):
        raise DamagedError(f"declares {found.declared} frames of sound and holds {found.frames}")
    first = found.first
    part = Part(stream, found.start, found.stop - found.start)
    notes = ("it ends inside a frame; it may have been cut",) if found.cut else ()
    try:
        blocks = _blocks(part, first)
    except MissingPackageError:
        return dataclasses.replace(libav.open_sound(part, "mp3"), notes=notes)
    return Sound(first.rate, first.channels, found.frames * first.samples, blocks, notes)


def survey(stream: BinaryIO, start: int, end: int) -> Survey:
    """Walks over all frames. Raises UndecodableError where there are none."""
    start = after_tags(stream, start)
    end = _before_tags(stream, start, end)
    reader = _Frames(stream, end)
    position = reader.first_frame(start)
    if position is None:
        raise UndecodableError("it holds no frame of MPEG audio")
    first = parse(reader.at(position, 4))
    assert first is not None
    begin, declared = position, _declared(reader.at(position, 192), first)
    frames, stop, cut = (0 if declared is None else -1), position, False
    while position < end:
        header = parse(reader.at(position, 4))
        if header is None or header.family != first.family:
            found = reader.frame_after(position, first.family)
            if found is None:
                break
            position = found
            continue
        if position + header.size > end:
            cut = True
            break
        frames += 1
        position += header.size
        stop = position
    return Survey(begin, stop, first, max(0, frames), declared, cut)


def parse(data: bytes) -> Header | None:
    """The frame whose header stands at the start of `data`; None where none does."""
    return _parse(data[:4]) if len(data) >= 4 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 else None


@lru_cache(maxsize=1024)
def _parse(data: bytes) -> Header | None:
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    bitrate, rate_index, padding = data[2] >> 4, data[2] >> 2 & 3, data[2] >> 1 & 1
    if version == 1 or layer == 0 or bitrate in (0, 15) or rate_index == 3:
        return None
    rate, is_first = _RATES[version][rate_index], version == 3
    bits = _KILOBITS[is_first, layer][bitrate - 1] * 1000
    if layer == 3:
        samples, size = 384, (12 * bits // rate + padding) * 4
    else:
        samples = 1152 if layer == 2 or is_first else 576
        size = samples // 8 * bits // rate + padding
    channels = 1 if data[3] >> 6 == 3 else 2
    return Header(size, samples, rate, channels, data[1] & 0xFE | (rate_index << 8))


def after_tags(stream: BinaryIO, position: int) -> int:
    """Where what follows the ID3v2 tags begins."""
    for _ in range(16):
        tag = read_at(stream, position, 10)
        if len(tag) < 10 or tag[:3] != b"ID3":
            break
        size = 0
        for byte in tag[6:10]:
            size = size << 7 | byte & 0x7F
        position += 10 + size + (10 if tag[5] & 0x10 else 0)
    return position


def _before_tags(stream: BinaryIO, start: int, end: int) -> int:
    """Where the tags at the end begin: ID3v1, Lyrics3 and APE in any order."""
    for _ in range(4):
        if read_at(stream, max(start, end - 128), 3) == b"TAG":
            end -= 128
        footer = read_at(stream, max(start, end - 32), 32)
        if footer[:8] == b"APETAGEX":
            end -= int.from_bytes(footer[12:16], "little") + (32 if footer[23] & 0x80 else 0)
        lyrics = read_at(stream, max(start, end - 15), 15)
        if lyrics[6:] == b"LYRICS200" and lyrics[:6].isdigit():
            end -= int(lyrics[:6]) + 15
    return max(start, end)


def _declared(frame: bytes, header: Header) -> int | None:
    """The number of frames that follow a first one without sound, as its encoder noted it."""
    mpeg1 = frame[1] >> 3 & 3 == 3
    side = (32 if header.channels == 2 else 17) if mpeg1 else (17 if header.channels == 2 else 9)
    side += 4 if frame[1] & 1 else 6
    if frame[side : side + 4] in (b"Xing", b"Info"):
        return (
            int.from_bytes(frame[side + 8 : side + 12], "big")
            if any(byte & 1 for byte in frame[side + 7 : side + 8])
            else 0
        )
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big")
    return None


class _Frames(ByteReader):
    """Where frames begin."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        super().__init__(stream, end)
        self._junk = 0

    def first_frame(self, position: int) -> int | None:
        """The first frame that another of its family, or the end, follows."""
        return self._search(position, None)

    def frame_after(self, position: int, family: int) -> int | None:
        """The next frame of a family behind a place where there is none."""
        return self._search(position + 1, family)

    def _search(self, position: int, family: int | None) -> int | None:
        while position < self.end and self._junk < _MOST_JUNK:
            block = bytes(self.at(position, 4096))
            if len(block) < 4:
                return None
            for match in _SYNC.finditer(block, 0, len(block) - 3):
                header = parse(block[match.start() : match.start() + 4])
                if header is not None and family in (None, header.family):
                    here = position + match.start()
                    following = parse(self.at(here + header.size, 4))
                    alone = here + header.size >= self.end - 4
                    if alone or (following is not None and following.family == header.family):
                        self._junk += match.start()
                        return here
            position += len(block) - 3
            self._junk += len(block) - 3
        return None


def _blocks(part: Part, first: Header) -> Iterator[Block]:
    try:
        import miniaudio
    except ImportError as error:
        raise MissingPackageError("miniaudio") from error

    class Source(miniaudio.StreamableSource):  # type: ignore[misc]  # the package has no types
        def read(self, num_bytes: int) -> Any:
            return part.read(num_bytes)

        def seek(self, offset: int, origin: Any) -> bool:
            part.seek(offset, 0 if origin == miniaudio.SeekOrigin.START else 1)
            return True

    source = Source()  # only a weak handle of it goes to the decoder

    def decoded() -> Iterator[Block]:
        try:
            pieces = miniaudio.stream_any(
                source,
                source_format=miniaudio.FileFormat.MP3,
                output_format=miniaudio.SampleFormat.FLOAT32,
                nchannels=first.channels,
                sample_rate=first.rate,
                frames_to_read=BLOCK // first.channels,
            )
            for piece in pieces:
                yield np.frombuffer(piece, np.float32).reshape(-1, first.channels)
        except miniaudio.MiniaudioError as error:
            raise UndecodableError("its frames cannot be decoded") from error

    return decoded()
