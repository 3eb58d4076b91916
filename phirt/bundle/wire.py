"""Walks over the fields of protocol buffers' messages, and writes fields. Time is bounded, whatever the bytes
are.

Knows the wire format (https://protobuf.dev/programming-guides/encoding). Knows nothing of any message: what
its fields mean is up to who reads them, and so is which kind of value each has to have. A reader must ask for
that kind: others pass over a field of another kind, and would not see what this one took it for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Where in the bytes a string or a message begins and ends.
Span = tuple[int, int]
# What a field holds: an integer, a string or message, or the bytes of a number of fixed size.
Value = int | Span | bytes

_FIXED = {1: 8, 5: 4}  # bytes, by wire type


class Wire:
    """Bytes that hold messages, of which at most `most` fields and numbers are read. All that walk over them
    raise ValueError where they are no such messages.
    """

    def __init__(self, data: bytes, most: int) -> None:
        self.data = data
        self._most = self._left = most

    def charge(self, fields: int) -> None:
        """Counts fields, or what costs as much as they do."""
        self._left -= fields
        if self._left < 0:
            raise ValueError(f"it has more than {self._most} fields")

    def whole(self) -> Span:
        """Of the outermost message."""
        return 0, len(self.data)

    def fields(self, span: Span) -> Iterator[tuple[int, Value]]:
        """Number and value of each field of the message at `span`."""
        data, (at, end) = self.data, span
        while at < end:
            self._left -= 1  # what `charge` does, without a call for each field
            if self._left < 0:
                self.charge(0)
            key = data[at]
            at += 1
            if key >= 0x80:
                key, at = self.varint(at - 1, end)
            if not 8 <= key < 1 << 32:  # others read 32 bits, and would see another number
                raise ValueError(f"a field's number is {key >> 3}")
            kind = key & 7
            if kind in (0, 2):
                if at < end and data[at] < 0x80:
                    found, at = data[at], at + 1
                else:
                    found, at = self.varint(at, end)
                if kind == 0:
                    yield key >> 3, found
                    continue
                size = found
            elif kind in _FIXED:
                size = _FIXED[kind]
            else:
                raise ValueError(f"wire type {kind} at byte {at}")
            begin, at = at, at + size
            if at > end:
                raise ValueError("a field reaches past the end")
            yield key >> 3, (begin, at) if kind == 2 else data[begin:at]

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The unsigned integer of 64 bits at `at`, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at
        raise ValueError("an integer has no end, or more than 64 bits")

    def varints(self, value: Value) -> list[int]:
        """The signed integers of a field: one, or all in one field."""
        if isinstance(value, int):
            return [signed(value)]
        found, (at, end) = [], span_of(value)
        while at < end:
            self.charge(1)
            one, at = self.varint(at, end)
            found.append(signed(one))
        return found

    def bytes_of(self, value: Value) -> bytes:
        """Of a field that is a string."""
        begin, end = span_of(value)
        return self.data[begin:end]

    def again(self, number: int, value: Value) -> bytes:
        """A field that was read, as it is written."""
        if isinstance(value, bytes):
            return _varint(number << 3 | (1 if len(value) == 8 else 5)) + value
        return field(number, value if isinstance(value, int) else self.bytes_of(value))

    def text(self, value: Value) -> str:
        """Of a field that is a string in UTF-8."""
        return self.bytes_of(value).decode("utf-8")  # UnicodeDecodeError is a ValueError


def field(number: int, value: int | float | bytes) -> bytes:
    """A field as it is written: an integer of 64 bits, a float32, or a string or message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & (1 << 64) - 1)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def span_of(value: Value) -> Span:
    """Of a field that is a message or a string."""
    if not isinstance(value, tuple):
        raise ValueError("a number where a message or a string belongs")
    return value


def integer_of(value: Value) -> int:
    """Of a field that is an integer, without its sign."""
    if not isinstance(value, int):
        raise ValueError("something else where an integer belongs")
    return value


def signed(value: int) -> int:
    """An int64 from the wire, where negative numbers have all upper bits set."""
    return value - (1 << 64) if value >= 1 << 63 else value
