"""Normalisation as sentencepiece has it: a table of what its longest known pieces of text become.

Knows the form of a `precompiled_charsmap`: the size of a trie, the trie (a double array, as Darts-clone
writes it), and the replacements, each ended by a zero byte. What is not in the table stays. The library's
own `Precompiled` reads the same table, but takes the first match inside a grapheme rather than the longest
one: decomposed kana and Hangul stay apart there.
"""

from __future__ import annotations

import struct

_SIZE = struct.Struct("<I")
_LABEL = 0x800000FF  # a leaf has the highest bit set, so that no byte equals it
_VALUE = 0x7FFFFFFF


class Charsmap:
    """The table. Raises ValueError if it is cut off."""

    def __init__(self, table: bytes) -> None:
        size = _SIZE.unpack_from(table)[0] if len(table) >= _SIZE.size else -1
        if not 4 <= size <= len(table) - _SIZE.size or size % 4:
            raise ValueError("the precompiled charsmap is cut off")
        self._units: tuple[int, ...] = struct.unpack_from(f"<{size // 4}I", table, _SIZE.size)
        self._replacements = table[_SIZE.size + size :]

    def normalize(self, text: str) -> str:
        """The text with each longest match replaced, from left to right."""
        data, parts = text.encode(), []
        at = kept = 0
        while at < len(data):
            length, place = self._longest_match(data, at)
            if length:
                parts += [data[kept:at], self._replacements[place : self._end(place)]]
                kept = at = at + length
            else:
                at += _width(data[at])
        return b"".join([*parts, data[kept:]]).decode("utf-8", "replace")

    def _longest_match(self, data: bytes, at: int) -> tuple[int, int]:
        """How many bytes it takes, and where its replacement begins; 0 bytes where there is none."""
        units, node = self._units, _offset(self._units[0])
        length = place = 0
        for end in range(at, len(data)):
            node ^= data[end]
            if node >= len(units) or units[node] & _LABEL != data[end]:
                break
            unit = units[node]
            node ^= _offset(unit)
            if unit >> 8 & 1 and node < len(units):
                length, place = end + 1 - at, units[node] & _VALUE
        return length, place

    def _end(self, place: int) -> int:
        end = self._replacements.find(b"\0", place)
        return len(self._replacements) if end < 0 else end


def _offset(unit: int) -> int:
    """From a node to its children: 21 bits, or as many shifted by 8."""
    return unit >> 10 << (unit >> 6 & 8)


def _width(first: int) -> int:
    """Bytes of a character, by its first one."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
