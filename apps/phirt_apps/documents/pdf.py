"""The pages of a PDF, read by a process of its own that may crash, hang or eat memory without harm.

Knows that process and what it writes. Does not know PDF; PDFium does, in `pdf_worker`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .files import DocumentError
from .limits import Limits

_WORKER = Path(__file__).with_name("pdf_worker.py")
# Where PDFium joins a word that a hyphen divides between two lines, or leaves a mark of it.
_HYPHENS = re.compile("[\ufffe\x02]\\s*")
_ENDS = {
    "locked": "is encrypted: a password is needed to read it; save a copy without one",
    "damaged": "is no PDF that can be read: it is damaged, or not a PDF at all",
}


class NoPdfError(DocumentError):
    """The package that reads PDF is not installed."""


class TimeUpError(DocumentError):
    """The file took too long, which may lie in it, or in a machine that was busy with something else."""


@dataclass(frozen=True)
class Pages:
    """The pages with text, by number; `remark` says what is missing of a file that was not read whole, and
    `time_up` that it is so for lack of time.
    """

    texts: tuple[tuple[int, str], ...]
    remark: str | None
    time_up: bool = False


def require_reader() -> None:
    """Raises NoPdfError where no PDF can be read."""
    frozen = getattr(sys, "frozen", False)  # there the executable is the application, which reads no files
    if frozen or not sys.executable or importlib.util.find_spec("pypdfium2") is None:
        raise NoPdfError("is a PDF, which this installation cannot read")


def read_pages(file: BinaryIO, limits: Limits) -> Pages:
    """The text of a PDF. Raises DocumentError for what cannot be read."""
    require_reader()
    written, status = _run(file, limits)
    texts, end = _parse(written)
    if end is not None and end["end"] in _ENDS:
        raise DocumentError(_ENDS[end["end"]])
    time_up = end is None and status is None
    failure = TimeUpError if time_up else DocumentError
    remark = _remark(texts, end, limits, time_up)
    if remark is not None and end is None and not texts:
        raise failure(remark)
    with_text = tuple((number, clean) for number, text in texts if (clean := _HYPHENS.sub("", text)).strip())
    if not with_text:
        where = f"its {len(texts)} pages" if remark is None else "the pages that were read"
        why = "pictures of pages cannot be searched" if remark is None else f"it {remark}"
        raise failure(f"holds no text on {where}; {why}")
    return Pages(with_text, remark, time_up)


def _remark(
    texts: list[tuple[int, str]], end: dict[str, Any] | None, limits: Limits, time_up: bool
) -> str | None:
    """What is missing of the file; None where it was read whole."""
    last = texts[-1][0] if texts else 0
    if end is None:
        why = (
            f"took longer than {limits.pdf_seconds:g} s"
            if time_up
            else "made its reader fail, so it is damaged or made to do that"
        )
        return f"is read up to page {last}: it {why}" if texts else f"cannot be read: it {why}"
    if end["end"] == "long":
        return f"is read up to page {last} of {end['pages']}, as it is very long"
    return None


def _run(file: BinaryIO, limits: Limits) -> tuple[bytes, int | None]:
    """What the process wrote, and its exit status; None where its time was up."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # of the file itself, whatever is buffered of it here
    # Its own bound of time is for the case that this process ends before it; a second later, so as not to
    # come before the one below, which tells that the time was up.
    bounds = (limits.pdf_pages, limits.characters, limits.pdf_memory, math.ceil(limits.pdf_seconds) + 1)
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            str(_WORKER),
            *map(str, bounds),
        ],  # -P: what lies in the folder is not imported
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        return process.communicate(timeout=limits.pdf_seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0], None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _parse(written: bytes) -> tuple[list[tuple[int, str]], dict[str, Any] | None]:
    """The pages, and the last line; None where the process did not come to it."""
    pages: list[tuple[int, str]] = []
    for line in written.split(b"\n"):
        try:
            said = json.loads(line)
        except ValueError:  # the line in which the process ended
            continue
        if "end" in said:
            return pages, said
        text = said["text"].encode("utf-8", "replace").decode()  # halves of pairs, as PDFs can hold them
        pages.append((said["page"], text))
    return pages, None
