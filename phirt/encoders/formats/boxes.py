"""Whether a file of sized parts (MPEG-4, Matroska, AVI, frames of AAC and AMR) ends where its last part does.

Knows sizes of parts. Decodes nothing; `libav` does.
"""

from __future__ import annotations

from typing import BinaryIO

from phirt.encoders.formats.sound import ByteReader, DamagedError, read_at, size_of

_MAX_PARTS = 1 << 16
_MAX_FRAMES = 1 << 20  # six hours of AMR; a longer file is not looked through
_LITTLE = 64  # bytes by which a size may lie
_SEGMENT = 0x18538067
_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)  # by mode, the header byte included
_AMR_WIDE_BYTES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)


def check_whole(stream: BinaryIO, key: str) -> tuple[str, ...]:
    """Notes for a file of the type `key` that may be cut. Raises DamagedError for one that plainly is."""
    check = {"mp4": _mp4, "matroska": _matroska, "avi": _avi, "aac": _aac, "amr": _amr}.get(key)
    return check(stream, size_of(stream)) if check is not None else ()


def _missing(declared: int, total: int) -> tuple[str, ...]:
    if declared > total + _LITTLE:
        raise DamagedError(f"should have {declared} bytes and has {total}")
    return ()


def _mp4(stream: BinaryIO, total: int) -> tuple[str, ...]:
    position, described = 0, False
    for _ in range(_MAX_PARTS):
        header = read_at(stream, position, 16)
        if len(header) < 8:
            break
        size = int.from_bytes(header[:4], "big")
        described = described or header[4:8] in (b"moov", b"moof")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size == 0:  # to the end
            break
        if size < 8:
            raise DamagedError("is not made of whole parts")
        _missing(position + size, total)
        position += size
    if not described:
        raise DamagedError("ends before the part that describes its sound (moov)")
    return ()


def _matroska(stream: BinaryIO, total: int) -> tuple[str, ...]:
    position = 0
    for _ in range(8):
        name, width = _number(read_at(stream, position, 4), keep_mark=True)
        size, more = _number(read_at(stream, position + width, 8), keep_mark=False)
        start = position + width + more
        if not width or not more:
            break
        if size == (1 << 7 * more) - 1:  # not known: a recording that was streamed
            break
        if name == _SEGMENT:
            return _missing(start + size, total)
        position = start + size
    return ()


def _number(data: bytes, *, keep_mark: bool) -> tuple[int, int]:
    """A number of EBML (RFC 8794) and its length in bytes; its first byte's leading zeros tell the length."""
    if not data or not data[0]:
        return 0, 0
    length = 9 - data[0].bit_length()
    if len(data) < length:
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    return (value if keep_mark else value & ((1 << 7 * length) - 1)), length


def _avi(stream: BinaryIO, total: int) -> tuple[str, ...]:
    return _missing(8 + int.from_bytes(read_at(stream, 4, 4), "little"), total)


def _aac(stream: BinaryIO, total: int) -> tuple[str, ...]:
    """Frames of ADTS, each with its length in 13 bits."""
    position, reader = 0, ByteReader(stream, total)
    for _ in range(_MAX_FRAMES):
        if position + 7 > total:
            return _doubt(position != total)
        header = reader.at(position, 7)
        if header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
            return ()  # a tag, or something that the decoder may know
        size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
        if size < 7:
            return ()
        position += size
    return ()


def _amr(stream: BinaryIO, total: int) -> tuple[str, ...]:
    magic = read_at(stream, 0, 9)
    if magic == b"#!AMR-WB\n":
        position, sizes = 9, _AMR_WIDE_BYTES
    elif magic[:6] == b"#!AMR\n":
        position, sizes = 6, _AMR_BYTES
    else:
        return ()
    reader = ByteReader(stream, total)
    for _ in range(_MAX_FRAMES):
        if position >= total:
            return _doubt(position != total)
        position += sizes[reader.at(position, 1)[0] >> 3 & 15]
    return ()


def _doubt(cut: bool) -> tuple[str, ...]:
    return ("it ends inside a frame; it may have been cut",) if cut else ()
