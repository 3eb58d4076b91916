"""Names a file by its first bytes, whatever its name says, and tells how to turn it into what phirt reads.

Knows magic numbers. Reads no further into a file and decodes nothing.
"""

from __future__ import annotations

import codecs
import dataclasses
import re
from typing import Literal

Kind = Literal["sound", "picture", "film", "other"]

HEAD = 4096  # bytes that are enough to name a file


@dataclasses.dataclass(frozen=True)
class FileType:
    """What a file is: `key` for programs, `name` for people (with its article), and what kind of thing."""

    key: str
    name: str
    kind: Kind


UNKNOWN = FileType("unknown", "of no format that phirt knows", "other")

_MAGIC: tuple[tuple[int, bytes, str, str, Kind], ...] = (
    (0, b"fLaC", "flac", "FLAC", "sound"),
    (0, b"OggS", "ogg", "Ogg", "sound"),
    (0, b".snd", "au", "AU", "sound"),
    (0, b"dns.", "au", "AU", "sound"),
    (0, b"caff", "caf", "CAF", "sound"),
    (0, b"#!AMR", "amr", "AMR", "sound"),
    (0, b"riff\x2e\x91\xcf\x11", "w64", "Wave64", "sound"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "Windows Media (WMA or WMV)", "film"),
    (0, b"FLV\x01", "flv", "a Flash video", "film"),
    (0, b"\x00\x00\x01\xba", "mpeg", "an MPEG video", "film"),
    (0, b"\x00\x00\x01\xb3", "mpegvideo", "an MPEG video without sound", "film"),
    (0, b"wvpk", "wavpack", "WavPack", "sound"),
    (0, b"MAC ", "ape", "Monkey's Audio", "sound"),
    (0, b"TTA1", "tta", "True Audio", "sound"),
    (0, b"DSD ", "dsf", "DSD audio", "sound"),
    (0, b"MPCK", "musepack", "Musepack", "sound"),
    (0, b"MP+", "musepack", "Musepack", "sound"),
    (0, b"\x0b\x77", "ac3", "Dolby AC-3", "sound"),
    (0, b"\xf0\x7e", "sds", "a MIDI sample dump", "other"),
    (0, b"MThd", "midi", "MIDI: notes, not a recording", "other"),
    (0, b"Creative Voice File", "voc", "Creative Voice", "sound"),
    (0, b"NIST_1A", "sphere", "NIST Sphere", "sound"),
    (0, b"\xff\xd8\xff", "jpeg", "JPEG", "picture"),
    (0, b"\x89PNG\r\n\x1a\n", "png", "PNG", "picture"),
    (0, b"GIF87a", "gif", "GIF", "picture"),
    (0, b"GIF89a", "gif", "GIF", "picture"),
    (0, b"BM", "bmp", "BMP", "picture"),
    (0, b"II*\x00\x10\x00\x00\x00CR", "raw", "a camera's raw picture (CR2)", "picture"),
    (0, b"FUJIFILMCCD-RAW", "raw", "a camera's raw picture (RAF)", "picture"),
    (0, b"IIRO", "raw", "a camera's raw picture (ORF)", "picture"),
    (0, b"IIU\x00", "raw", "a camera's raw picture (RW2)", "picture"),
    (0, b"II*\x00", "tiff", "TIFF", "picture"),
    (0, b"MM\x00*", "tiff", "TIFF", "picture"),
    (0, b"II+\x00", "tiff", "TIFF", "picture"),
    (0, b"MM\x00+", "tiff", "TIFF", "picture"),
    (0, b"\x00\x00\x01\x00", "ico", "ICO", "picture"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jpeg2000", "JPEG 2000", "picture"),
    (0, b"\xff\x4f\xff\x51", "jpeg2000", "JPEG 2000", "picture"),
    (0, b"\xff\x0a", "jpegxl", "JPEG XL", "picture"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jpegxl", "JPEG XL", "picture"),
    (0, b"8BPS", "psd", "a Photoshop document", "picture"),
    (0, b"icns", "icns", "an Apple icon (ICNS)", "picture"),
    (0, b"gimp xcf", "xcf", "a GIMP document", "picture"),
    (0, b"DDS ", "dds", "a DirectDraw surface", "picture"),
    (0, b"qoif", "qoi", "QOI", "picture"),
    (0, b"\x76\x2f\x31\x01", "exr", "OpenEXR", "picture"),
    (0, b"#?RADIANCE", "hdr", "Radiance HDR", "picture"),
    (0, b"\xd7\xcd\xc6\x9a", "wmf", "a Windows metafile", "picture"),
    (40, b" EMF", "emf", "a Windows metafile", "picture"),
    (128, b"DICM", "dicom", "DICOM", "picture"),
    (0, b"%PDF", "pdf", "a PDF document", "other"),
    (0, b"%!PS", "postscript", "a PostScript document", "other"),
    (0, b"PK\x03\x04", "zip", "a ZIP archive (or an office document)", "other"),
    (0, b"PK\x05\x06", "zip", "an empty ZIP archive", "other"),
    (0, b"\x1f\x8b", "gzip", "compressed with gzip", "other"),
    (0, b"BZh", "bzip2", "compressed with bzip2", "other"),
    (0, b"\xfd7zXZ\x00", "xz", "compressed with xz", "other"),
    (0, b"\x28\xb5\x2f\xfd", "zstd", "compressed with zstd", "other"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z", "a 7-Zip archive", "other"),
    (0, b"Rar!\x1a\x07", "rar", "a RAR archive", "other"),
    (257, b"ustar", "tar", "a tar archive", "other"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole", "an old office document", "other"),
    (0, b"\x7fELF", "program", "a program", "other"),
    (0, b"MZ", "program", "a program", "other"),
    (0, b"SQLite format 3\x00", "sqlite", "a SQLite database", "other"),
    (0, b"\x93NUMPY", "npy", "a NumPy array", "other"),
    (0, b"version https://git-lfs", "lfs", "a Git LFS pointer and not the file itself", "other"),
)  # fmt: skip

_RIFF: dict[bytes, tuple[str, str, Kind]] = {
    b"WAVE": ("wav", "WAV", "sound"),
    b"WEBP": ("webp", "WebP", "picture"),
    b"AVI ": ("avi", "an AVI video", "film"),
    b"RMID": ("midi", "MIDI: notes, not a recording", "other"),
}

_BRANDS: tuple[tuple[tuple[bytes, ...], str, str, Kind], ...] = (
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "heic", "HEIC", "picture"),
    ((b"avif", b"avis"), "avif", "AVIF", "picture"),
    ((b"mif1", b"msf1"), "heic", "HEIF", "picture"),
    ((b"crx ",), "raw", "a camera's raw picture (CR3)", "picture"),
    ((b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B "), "mp4", "MPEG-4 audio (m4a)", "sound"),
    ((b"qt  ",), "mp4", "a QuickTime video", "film"),
    ((b"3gp", b"3g2", b"3ge", b"3gg", b"3gs"), "mp4", "a 3GPP recording", "film"),
)
_ATOMS = (b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")

_HTML = re.compile(rb"<(!doctype html|html|head|body|script)\b", re.IGNORECASE)
_SVG = re.compile(rb"<svg\b", re.IGNORECASE)
_NETPBM = re.compile(rb"P[1-7][\s#]")


def identify(head: bytes) -> FileType:
    """What the file is whose first bytes (`HEAD` of them) these are."""
    return _of_container(head) or _of_magic(head) or _of_mpeg_frame(head) or _of_text(head) or UNKNOWN


def _of_container(head: bytes) -> FileType | None:
    """Formats that share a frame with others: RIFF, IFF, ISO media (MPEG-4 and its relatives), Matroska."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX", b"FFIR"):
        key, name, kind = _RIFF.get(head[8:12], ("riff", "a RIFF file of an unknown type", "other"))
        return FileType(key, name, kind)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return FileType("aiff", "AIFF", "sound")
    if head[4:8] == b"ftyp":
        size = int.from_bytes(head[:4], "big")
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(max(size, 16), 256), 4))]
        for known, key, name, kind in _BRANDS:
            if any(brand.startswith(known) for brand in brands):
                return FileType(key, name, kind)
        return FileType("mp4", "MPEG-4 (a video, or m4a)", "film")
    if head[4:8] in _ATOMS:
        return FileType("mp4", "a QuickTime video", "film")
    if head[:4] == b"\x1aE\xdf\xa3":
        webm = b"webm" in head[:64]
        return FileType("matroska", "WebM" if webm else "a Matroska video", "film")
    if head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G":
        return FileType("mpegts", "an MPEG transport stream", "film")
    return None


def _of_magic(head: bytes) -> FileType | None:
    for offset, magic, key, name, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return FileType(key, name, kind)
    if _NETPBM.match(head):
        return FileType("ppm", "Netpbm", "picture")
    return None


def _of_mpeg_frame(head: bytes) -> FileType | None:
    """MPEG audio has no signature: a tag, or a frame's sync bits with a layer and a rate that exist."""
    if head[:3] == b"ID3":
        return FileType("mp3", "MP3", "sound")
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return FileType("aac", "AAC", "sound")
    layer, version = head[1] >> 1 & 3, head[1] >> 3 & 3
    if layer and version != 1 and head[2] >> 4 != 15 and head[2] >> 2 & 3 != 3:
        return FileType("mp3", "MP3", "sound")
    return None


def _of_text(head: bytes) -> FileType | None:
    if not head.strip(b"\x00"):
        return FileType("zeros", "nothing but zeros: a download or a copy that failed", "other")
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head[:1024])
    except UnicodeDecodeError:
        return None
    if any(character < " " and character not in "\t\r\n\f\x1b" for character in text):
        return None
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if _SVG.search(start[:1024]):
        return FileType("svg", "an SVG drawing", "picture")
    if _HTML.match(start):
        return FileType("html", "a web page (HTML), perhaps a download that failed", "other")
    if start[:5] == b"<?xml":
        return FileType("xml", "XML", "other")
    return FileType("text", "text", "other")
