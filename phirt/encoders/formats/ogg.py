"""Ogg: which codec is inside, and whether the last page is whole (RFC 3533).

Knows pages. Vorbis, Opus and FLAC inside are libsndfile's, everything else is libav's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import BinaryIO

from phirt.encoders.formats import libav, sndfile
from phirt.encoders.formats.sound import DamagedError, Sound, read_at, size_of

_HEADER = 27
_PAGE = b"OggS\0"  # and the only version
_MAX_PAGES = 1 << 19  # a day, and longer ones are not looked through
_LONGEST_PAGE = _HEADER + 255 + 255 * 255
_FIRST, _LAST = 2, 4  # bits of a page's type: the first and the last page of a stream
_OF_LIBSNDFILE = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")


@dataclasses.dataclass(frozen=True)
class _Page:
    offset: int
    size: int
    type: int
    serial: int


def open_sound(stream: BinaryIO) -> Sound:
    """Raises DamagedError where the file ends inside a page."""
    end, codecs, ended, last = size_of(stream), [], False, None
    count = 0
    for page in _pages(stream, end):
        count += 1
        if page.type & _FIRST:
            segments = page.size - _HEADER
            codecs.append(read_at(stream, page.offset + _HEADER, min(segments, 512)))
        ended = bool(page.type & _LAST)
        last = page
    if last is None:
        raise DamagedError("has no whole page")
    rest = end - last.offset - last.size
    if count == _MAX_PAGES:
        rest, ended = 0, True
    if rest > 0 and _PAGE.startswith(read_at(stream, last.offset + last.size, min(5, rest))):
        raise DamagedError("ends inside a page")
    one = len(codecs) == 1 and any(codec in codecs[0] for codec in _OF_LIBSNDFILE)
    sound = sndfile.open_sound(stream) if one and _rewound(stream) else libav.open_sound(stream, "ogg")
    notes = () if ended else ("its last page has no end mark; it may have been cut",)
    return dataclasses.replace(sound, notes=notes)


def _rewound(stream: BinaryIO) -> bool:
    stream.seek(0)
    return True


def _pages(stream: BinaryIO, end: int) -> Iterator[_Page]:
    """The whole pages in order; what is no page is skipped, as a decoder does."""
    position = 0
    for _ in range(_MAX_PAGES):
        if position + _HEADER > end:
            return
        header = read_at(stream, position, _HEADER + 255)
        if header[:5] != _PAGE:
            position = _next_page(stream, position)
            continue
        count = header[26]
        size = _HEADER + count + sum(header[_HEADER : _HEADER + count])
        if len(header) < _HEADER + count or position + size > end:
            return
        yield _Page(position, size, header[5], int.from_bytes(header[14:18], "little"))
        position += size


def _next_page(stream: BinaryIO, position: int) -> int:
    while block := read_at(stream, position, _LONGEST_PAGE):
        found = block.find(_PAGE)
        if found >= 0:
            return position + found
        position += max(1, len(block) - 4)
    return position
