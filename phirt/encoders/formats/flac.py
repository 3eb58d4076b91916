"""FLAC (RFC 9639): how long it is where its header lies or says nothing; whether its last frame is whole.

Knows stream information and frame headers. The decoding is libsndfile's.
"""

from __future__ import annotations

import contextlib
import io
from typing import BinaryIO

from phirt.encoders.formats import sndfile
from phirt.encoders.formats.sound import DamagedError, Part, Sound, read_at, size_of

_TOTAL_AT = 21  # the byte whose lower half begins the 36 bits of the total number of samples
_NOT_KNOWN = (0, (1 << 36) - 1)  # the standard's placeholder, and that of writers that fill the field up
_LONGEST_FRAME = 1 << 20  # bytes looked through for the last frame
_TRIES = 4  # false headers occur inside frames, though rarely
_TAG = 128  # bytes of an ID3v1 tag, which some programs put behind


def open_sound(stream: BinaryIO, start: int = 0) -> Sound:
    """`start` is where "fLaC" stands. Raises DamagedError where the last frame is not whole, or too early."""
    end = size_of(stream)
    head = bytearray(read_at(stream, start, 42))
    if len(head) < 42 or head[4] & 127:
        raise DamagedError("has no stream information")
    declared = int.from_bytes(head[_TOTAL_AT : _TOTAL_AT + 5], "big") & ((1 << 36) - 1)
    tail = read_at(stream, max(start + 42, end - _LONGEST_FRAME), _LONGEST_FRAME)
    held = None
    # What a tagging program has put behind the last frame hides it; a total that is known does without.
    with contextlib.nullcontext() if declared in _NOT_KNOWN else contextlib.suppress(DamagedError):
        held = _length(tail, int.from_bytes(head[10:12], "big"))
    if held is not None and held != declared:
        if held < declared and declared not in _NOT_KNOWN:
            raise DamagedError(f"declares {declared} samples and holds {held}")
        head[_TOTAL_AT : _TOTAL_AT + 5] = ((head[_TOTAL_AT] >> 4) << 36 | held).to_bytes(5, "big")
    return sndfile.open_sound(Part(stream, start + 42, end - start - 42, bytes(head)))


def _length(tail: bytes, block_size: int) -> int:
    """Samples up to the end of the last frame, which must end where the file does."""
    if tail[-_TAG : -_TAG + 3] == b"TAG":
        tail = tail[:-_TAG]
    position = len(tail)
    for _ in range(_TRIES):
        found = None
        while found is None:
            position = tail.rfind(b"\xff", 0, position)
            if position < 0:
                raise DamagedError("ends inside a frame")
            found = _frame(tail, position, block_size)
        if _is_whole(tail[position:]):
            return found
    raise DamagedError("ends inside a frame")


def _is_whole(frame: bytes) -> bool:
    """Whether a frame's checksum, its last two bytes, is right: the sum over frame and checksum is then zero.

    Zeros may follow. A checksum may end in zeros of its own, so up to two of them are tried as parts of it.
    """
    shortest = len(frame.rstrip(b"\0"))
    sums = [_crc16(frame[:shortest])]
    for _ in range(min(2, len(frame) - shortest)):
        sums.append(_crc16(b"\0", sums[-1]))
    return 0 in sums


def _frame(data: bytes, at: int, block_size: int) -> int | None:
    """The number of samples up to the end of the frame whose header stands at `at`; None if none does."""
    if len(data) < at + 6 or data[at + 1] & 0xFE != 0xF8:
        return None
    number, used = _coded_number(data, at + 4)
    if number is None:
        return None
    header = io.BytesIO(data[at + 4 + used : at + 4 + used + 5])
    size_code, rate_code = data[at + 2] >> 4, data[at + 2] & 15
    samples = {6: lambda: header.read(1)[0] + 1, 7: lambda: int.from_bytes(header.read(2), "big") + 1}
    try:
        count = samples[size_code]() if size_code in samples else _block_size(size_code)
        header.read({12: 1, 13: 2, 14: 2}.get(rate_code, 0))
        checksum = header.read(1)[0]
    except IndexError:
        return None
    if count == 0 or _crc8(data[at : at + 4 + used + header.tell() - 1]) != checksum:
        return None
    variable = data[at + 1] & 1
    return (number if variable else number * block_size) + count


def _block_size(code: int) -> int:
    if code == 1:
        return 192
    if 2 <= code <= 5:
        return 576 << (code - 2)
    return 256 << (code - 8) if code >= 8 else 0


def _coded_number(data: bytes, at: int) -> tuple[int | None, int]:
    """The frame's or the sample's number, written as UTF-8 writes a character, and its length in bytes."""
    first = data[at]
    if first < 0x80:
        return first, 1
    length = 8 - (first ^ 0xFF).bit_length()
    rest = data[at + 1 : at + length]
    if not 2 <= length <= 7 or len(rest) < length - 1 or any(byte & 0xC0 != 0x80 for byte in rest):
        return None, 0
    number = first & ((1 << max(0, 7 - length)) - 1)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, length


def _table(polynomial: int, bits: int) -> tuple[int, ...]:
    values = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial) if value >> (bits - 1) & 1 else value << 1
        values.append(value & ((1 << bits) - 1))
    return tuple(values)


_CRC8, _CRC16 = _table(0x07, 8), _table(0x8005, 16)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes, value: int = 0) -> int:
    for byte in data:
        value = (value << 8 & 0xFF00) ^ _CRC16[value >> 8 ^ byte]
    return value
