"""WAV as programs write it: RIFF, RIFX, RF64 and BW64, also into pipes, where the sizes are not known yet.

Knows chunks. Plain samples are read by `pcm`; the rarer codecs get a header that is right, and go on.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import BinaryIO

from phirt.encoders.formats import mpeg, sndfile
from phirt.encoders.formats.pcm import Encoding, Pcm
from phirt.encoders.formats.sound import DamagedError, Part, Sound, UndecodableError, read_at, size_of

_MAX_FORMAT_BYTES = 4096
_MAX_CHUNKS = 4096
# A size that stands for "to the end": what a program wrote that did not know it yet. Some subtract a header.
_PLACEHOLDERS = (range(0x7FFF0000, 0x80000100), range(0xFFFF0000, 1 << 32))
_PCM, _MS_ADPCM, _FLOAT, _ALAW, _ULAW, _IMA_ADPCM, _GSM, _MPEG, _MP3 = 1, 2, 3, 6, 7, 0x11, 0x31, 0x50, 0x55
_EXTENSIBLE = 0xFFFE
_OF_LIBSNDFILE = (_MS_ADPCM, _IMA_ADPCM, _GSM)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """The parts of a WAV that matter: the body of `fmt `, and where the samples lie and how many bytes."""

    format: bytes
    offset: int
    size: int


def open_sound(stream: BinaryIO) -> Sound:
    """Raises DamagedError for a recording that was cut, UndecodableError for one of an unknown codec."""
    total = size_of(stream)
    head = read_at(stream, 0, 12)
    order = ">" if head[:4] in (b"RIFX", b"FFIR") else "<"
    chunks = _chunks(stream, total, order)
    if len(chunks.format) < 16:
        raise DamagedError("says nothing of its format")
    tag, channels, rate, _, align, bits = struct.unpack_from(f"{order}HHIIHH", chunks.format)
    if tag == _EXTENSIBLE and len(chunks.format) >= 26:
        tag = int.from_bytes(chunks.format[24:26], "little" if order == "<" else "big")
    if tag in (_MPEG, _MP3):
        return mpeg.open_sound(stream, chunks.offset, chunks.offset + chunks.size)
    if tag in _OF_LIBSNDFILE and order == "<":
        return sndfile.open_sound(_rewritten(stream, chunks))
    encoding = _encoding(tag, bits)
    if encoding is None:
        raise UndecodableError(f"its sound is of codec 0x{tag:04x}")
    if channels == 0 or rate == 0:
        raise UndecodableError(f"it declares {channels} channels and {rate} samples a second")
    width = align // channels if align and align % channels == 0 else -(-bits // 8)
    pcm = Pcm(rate, channels, encoding, width, order == ">", chunks.offset, chunks.size)
    if not pcm.known or not 0 < bits <= 8 * width:
        raise UndecodableError(f"it declares samples of {bits} bits in {align} bytes for {channels} channels")
    return Sound(rate, channels, pcm.frames, pcm.blocks(stream))


def _encoding(tag: int, bits: int) -> Encoding | None:
    if tag == _PCM:
        return "unsigned" if bits <= 8 else "signed"
    kinds: dict[int, Encoding] = {_FLOAT: "float", _ALAW: "alaw", _ULAW: "ulaw"}
    return kinds.get(tag)


def _chunks(stream: BinaryIO, total: int, order: str) -> _Chunks:
    position, format_body, long_size = 12, b"", None
    for _ in range(_MAX_CHUNKS):
        header = read_at(stream, position, 8)
        if len(header) < 8:
            break
        size = struct.unpack(f"{order}I", header[4:])[0]
        position += 8
        if header[:4] == b"data":
            declared = long_size if size == 0xFFFFFFFF and long_size else size
            return _Chunks(format_body, position, _sound_bytes(stream, position, declared, total))
        if header[:4] == b"fmt ":
            format_body = read_at(stream, position, min(size, _MAX_FORMAT_BYTES))
        elif header[:4] == b"ds64" and size >= 16:
            long_size = int.from_bytes(read_at(stream, position + 8, 8), "little")
        position += size
        if size % 2 and _padded(stream, position):
            position += 1
    raise DamagedError("has no sound data")


def _padded(stream: BinaryIO, position: int) -> bool:
    """A chunk of odd size is followed by one byte; some programs forget it."""
    following = read_at(stream, position, 5)
    return not (following[:1] != b"\0" and following[:4].isalnum() and not following[1:5].isalnum())


def _sound_bytes(stream: BinaryIO, offset: int, declared: int, total: int) -> int:
    """How many bytes from `offset` on are samples.

    A placeholder means all that is there, and so does zero unless whole chunks follow. A size that says a
    little more than there is counted a header, or the last buffer. Raises DamagedError where more is missing.
    """
    present = total - offset
    if declared == 0 and present and not _are_chunks(stream, offset, total):
        return present
    if declared <= present:
        return declared
    if any(declared in values for values in _PLACEHOLDERS) or declared >= (1 << 64) - (1 << 16):
        return present
    if is_little(declared - present, declared):
        return present
    raise DamagedError(f"declares {declared} bytes of sound and holds {present}")


def is_little(missing: int, declared: int) -> bool:
    """Whether so few bytes are missing that a header was counted wrongly, rather than a recording cut."""
    return missing <= 64 or (missing <= 1024 and missing * 20 <= declared)


def _are_chunks(stream: BinaryIO, position: int, total: int) -> bool:
    """Whether chunks, and nothing else, lie from `position` to the end."""
    for _ in range(_MAX_CHUNKS):
        if position >= total:
            return position - total <= 1
        header = read_at(stream, position, 8)
        if len(header) < 8 or not header[:4].strip().isalnum():
            return False
        size = int.from_bytes(header[4:], "little")
        position += 8 + size + size % 2
    return False


def _rewritten(stream: BinaryIO, chunks: _Chunks) -> Part:
    """The same sound behind a header whose sizes are true."""
    body = chunks.format[:_MAX_FORMAT_BYTES]
    body += b"\0" * (len(body) % 2)
    head = b"fmt " + struct.pack("<I", len(body)) + body + b"data" + struct.pack("<I", chunks.size)
    return Part(
        stream,
        chunks.offset,
        chunks.size,
        b"RIFF" + struct.pack("<I", 4 + len(head) + chunks.size) + b"WAVE" + head,
    )
