"""JPEG whose end is missing: whether only the end marker is, or a part of the picture too.

Knows markers and scans (ITU-T T.81). The decoding is Pillow's: it fills what is missing without a word, so a
file without its end is decoded twice, with different bytes behind it; where the pixels differ, they were not
there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import zlib

import numpy as np
from PIL import JpegImagePlugin

from phirt.encoders.formats.sound import DamagedError

_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ALONE = (0x01, 0xD8, *range(0xD0, 0xD8))  # markers without a length
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_ROWS = 64  # looked at together
_PADDING = b"".join(hashlib.sha256(bytes([i])).digest().replace(b"\xff", b"\x7f") for i in range(32))


@dataclasses.dataclass
class _Scans:
    """What the markers up to the end say: the frame's kind, and of each component what its scans brought."""

    progressive: bool = False
    components: tuple[int, ...] = ()
    missing_bits: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    count: int = 0
    ended: bool = False

    @property
    def complete(self) -> bool:
        """Whether a scan has begun, and of a progressive picture those that make it whole."""
        if not self.progressive:
            return self.count > 0
        wanted = [(component, k) for component in self.components for k in range(64)]
        return bool(wanted) and all(self.missing_bits.get(key) == 0 for key in wanted)


def with_end(data: bytes) -> bytes:
    """The file with its end marker. Raises DamagedError where more than that is missing."""
    scans = _scans(data)
    if scans.ended:
        return data
    if not scans.count:
        raise DamagedError("the file ends before the picture begins")
    if not scans.complete:
        raise DamagedError("its last scans are missing")
    whole = data.rstrip(b"\xff") + _END
    missing = _missing_rows(whole, data.rstrip(b"\xff") + _PADDING + _END)
    if missing is not None:
        rows, height = missing
        raise DamagedError(f"about {rows} of its {height} rows are missing")
    return whole


def _scans(data: bytes) -> _Scans:
    """Walks over the markers, from the start to the end marker or the end of the file."""
    found, position = _Scans(), 2
    while (match := _MARKER.search(data, position)) is not None:
        marker, position = data[match.end() - 1], match.end()
        if marker == _END[1]:
            found.ended = True
            break
        if marker in _ALONE:
            continue
        size = int.from_bytes(data[position : position + 2], "big")
        body = data[position + 2 : position + size]
        position += size
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            found.progressive = marker in _PROGRESSIVE
            found.components = tuple(body[6 + 3 * i] for i in range((len(body) - 6) // 3))
        elif marker == 0xDA and len(body) >= 4:
            found.count += position < len(data)
            first, last, low = body[-3], body[-2], body[-1] & 15
            for component in body[1 : 1 + 2 * body[0] : 2]:
                for k in range(first, min(last, 63) + 1):
                    found.missing_bits[component, k] = low
    return found


def _missing_rows(data: bytes, other: bytes) -> tuple[int, int] | None:
    """How many rows differ between two files, from the first such row on, and how many there are."""
    rows, others = _row_sums(data), _row_sums(other)
    for number, (one, another) in enumerate(zip(rows, others, strict=True)):
        if one != another:
            return len(rows) - number, len(rows)
    return None


def _row_sums(data: bytes) -> list[int]:
    """A checksum of each row; so only one of two large pictures is in memory at a time."""
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data), "")
    image.load()
    width, height = image.size
    sums = []
    for top in range(0, height, _ROWS):
        rows = np.asarray(image.crop((0, top, width, min(top + _ROWS, height))))
        sums += [zlib.crc32(row.tobytes()) for row in rows]
    return sums
