"""AIFF, AU and CAF: where their samples lie, and whether all of them are there.

Knows chunks and headers. Plain samples are read by `pcm`; the rarer codecs go to libsndfile or libav.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import BinaryIO

from phirt.encoders.formats import libav, sndfile
from phirt.encoders.formats.pcm import Encoding, Pcm
from phirt.encoders.formats.riff import is_little
from phirt.encoders.formats.sound import DamagedError, Sound, UndecodableError, read_at, size_of

_MAX_CHUNKS = 4096
_NOT_KNOWN = range(0x7FFF0000, 0x80000100)  # what a program writes into a pipe, where no size is known yet

_AIFC: dict[bytes, tuple[Encoding, int, bool]] = {  # encoding, bytes (0: as declared), big-endian
    b"NONE": ("signed", 0, True),
    b"twos": ("signed", 0, True),
    b"sowt": ("signed", 0, False),
    b"in24": ("signed", 3, True),
    b"in32": ("signed", 4, True),
    b"raw ": ("unsigned", 1, True),
    b"fl32": ("float", 4, True),
    b"FL32": ("float", 4, True),
    b"fl64": ("float", 8, True),
    b"FL64": ("float", 8, True),
    b"alaw": ("alaw", 1, True),
    b"ALAW": ("alaw", 1, True),
    b"ulaw": ("ulaw", 1, True),
    b"ULAW": ("ulaw", 1, True),
}
_AU: dict[int, tuple[Encoding, int]] = {
    1: ("ulaw", 1),
    2: ("signed", 1),
    3: ("signed", 2),
    4: ("signed", 3),
    5: ("signed", 4),
    6: ("float", 4),
    7: ("float", 8),
    27: ("alaw", 1),
}


def open_aiff(stream: BinaryIO) -> Sound:
    """AIFF and AIFF-C. Raises DamagedError where the sound is cut."""
    common, total = b"", size_of(stream)
    for name, offset, size in _chunks(stream, 12, 4, total):
        if name == b"COMM":
            common = read_at(stream, offset, min(size, 256))
        elif name == b"SSND":
            if len(common) < 18:
                raise DamagedError("says nothing of its format")
            return _aiff_sound(stream, common, offset, size, total)
    raise DamagedError("has no sound data")


def _aiff_sound(stream: BinaryIO, common: bytes, offset: int, size: int, total: int) -> Sound:
    channels, frames, bits = struct.unpack_from(">hIh", common)
    rate = _extended(common[8:18])
    codec = common[18:22] if len(common) >= 22 else b"NONE"
    if codec not in _AIFC:
        _check_present(size - 8, total - offset - 8)
        stream.seek(0)
        return sndfile.open_sound(stream)
    encoding, width, big_endian = _AIFC[codec]
    start = offset + 8 + int.from_bytes(read_at(stream, offset, 4), "big")
    step = (width or -(-bits // 8)) * channels
    declared = frames * step
    if frames == 0 or size <= 8 or size in _NOT_KNOWN or frames in _NOT_KNOWN:
        declared = total - start
    present = _check_present(declared, total - start)
    return _pcm_sound(
        stream, Pcm(rate, channels, encoding, width or -(-bits // 8), big_endian, start, present)
    )


def open_au(stream: BinaryIO) -> Sound:
    """AU of Sun and NeXT, of either byte order. Raises DamagedError where the sound is cut."""
    total, order = size_of(stream), ">" if read_at(stream, 0, 4) == b".snd" else "<"
    header = read_at(stream, 4, 20)
    if len(header) < 20:
        raise DamagedError("ends inside its header")
    start, declared, codec, rate, channels = struct.unpack(f"{order}5I", header)
    if declared >= 0xFFFF0000 or declared in _NOT_KNOWN or declared == 0:
        declared = total - start
    present = _check_present(declared, total - start)
    if codec not in _AU:
        if order == "<":
            raise UndecodableError(f"its sound is of codec {codec}")
        stream.seek(0)
        return sndfile.open_sound(stream)
    encoding, width = _AU[codec]
    return _pcm_sound(stream, Pcm(rate, channels, encoding, width, order == ">", start, present))


def open_caf(stream: BinaryIO) -> Sound:
    """Apple's Core Audio Format. Raises DamagedError where the sound is cut."""
    total, description = size_of(stream), b""
    for name, offset, size in _chunks(stream, 8, 8, total):
        if name == b"desc":
            description = read_at(stream, offset, 32)
        elif name == b"data":
            if len(description) < 32:
                raise DamagedError("says nothing of its format")
            declared = total - offset if size >= 1 << 63 else size
            return _caf_sound(stream, description, offset, _check_present(declared, total - offset))
    raise DamagedError("has no sound data")


def _caf_sound(stream: BinaryIO, description: bytes, offset: int, present: int) -> Sound:
    rate, codec, flags, _, _, channels, bits = struct.unpack(">d4s5I", description)
    rate = int(rate) if math.isfinite(rate) and 0 <= rate < 1 << 31 else 0
    encodings: dict[bytes, Encoding] = {b"alaw": "alaw", b"ulaw": "ulaw"}
    if codec == b"lpcm":
        encoding: Encoding = "float" if flags & 1 else "signed"
    elif codec in encodings:
        encoding, bits = encodings[codec], 8
    else:
        return libav.open_sound(stream, "caf")
    pcm = Pcm(rate, channels, encoding, -(-bits // 8), not flags & 2, offset + 4, max(0, present - 4))
    return _pcm_sound(stream, pcm)


def _pcm_sound(stream: BinaryIO, pcm: Pcm) -> Sound:
    if pcm.channels < 1 or pcm.rate < 1 or not pcm.known:
        raise UndecodableError(
            f"it declares {pcm.channels} channels, {pcm.rate} samples a second and {8 * pcm.width} bits"
        )
    return Sound(pcm.rate, pcm.channels, pcm.frames, pcm.blocks(stream))


def _chunks(stream: BinaryIO, position: int, width: int, total: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, where the body begins, its size as declared) of chunks with sizes of `width` bytes."""
    for _ in range(_MAX_CHUNKS):
        header = read_at(stream, position, 4 + width)
        if len(header) < 4 + width:
            return
        size = int.from_bytes(header[4:], "big")
        yield header[:4], position + 4 + width, size
        position += 4 + width + size + (size % 2 if width == 4 else 0)
        if position > total:
            return


def _check_present(declared: int, present: int) -> int:
    """The bytes of sound to read. Raises DamagedError where plainly more were declared than are there."""
    if declared > present and not is_little(declared - present, declared):
        raise DamagedError(f"declares {declared} bytes of sound and holds {max(0, present)}")
    return max(0, min(declared, present))


def _extended(data: bytes) -> int:
    """A positive 80-bit float as AIFF writes its rate, rounded; 0 for what is no such number."""
    exponent, mantissa = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:], "big")
    if exponent & 0x8000 or not 0 <= exponent - 16383 <= 31:
        return 0
    return round(mantissa / (1 << (63 - (exponent - 16383))))
