"""PNG without what is no picture: metadata of any size is left out before a decoder sees the file.

Knows chunks (ISO 15948). Decodes nothing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
# Where older programs keep the orientation; everything else in text chunks is for people.
_ORIENTING = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")
_MOST_TEXT = 1 << 19  # bytes of such a text, unpacked


def is_apples(data: bytes) -> bool:
    """Whether this is what Xcode makes of a PNG: other programs cannot read it, in spite of its signature."""
    return data[12:16] == b"CgBI"


def picture_alone(data: bytes) -> bytes:
    """The same picture without metadata, and with its end where that is missing.

    A chunk that was cut is kept as long as it is: it may hold every pixel.
    """
    parts, ended = [SIGNATURE], False
    for name, body in _chunks(data):
        if name in _KEPT or (name in (b"tEXt", b"zTXt", b"iTXt") and _orients(name, body)):
            parts.append(_chunk(name, body))
        ended = name == b"IEND"
        if ended:
            break
    if not ended:
        parts.append(_chunk(b"IEND", b""))
    return b"".join(parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, position = memoryview(data), len(SIGNATURE)
    while position + 8 <= len(data):
        size = int.from_bytes(view[position : position + 4], "big")
        yield bytes(view[position + 4 : position + 8]), view[position + 8 : position + 8 + size]
        position += 12 + size


def _chunk(name: bytes, body: bytes | memoryview) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _orients(name: bytes, body: memoryview) -> bool:
    """Whether a text may hold the orientation, and does not unpack to more than a text would."""
    start = bytes(body[:128])
    keyword, zero, rest = start.partition(b"\0")
    if keyword not in _ORIENTING or not zero or len(body) > _MOST_TEXT:
        return False
    packed = name == b"zTXt" or (name == b"iTXt" and rest[:1] == b"\x01")
    if not packed:
        return True
    if name == b"iTXt":  # flag, method, language, translated keyword
        after_flags = bytes(body[len(keyword) + 3 :])
        text = after_flags.split(b"\0", 2)[-1]
    else:
        text = bytes(body[len(keyword) + 2 :])
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(text, _MOST_TEXT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
