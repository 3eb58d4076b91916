"""The pages of a PDF, read by a process of its own that may crash, hang or eat memory without harm.

Knows that process and what it writes. Does not know PDF; PDFium does, in `pdf_worker`.
"""

from __future__ import annotations

import importlib.util
import json
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


@dataclass(frozen=True)
class Pages:
    """The pages with text, by number; `remark` says what is missing of a file that was not read whole."""

    texts: tuple[tuple[int, str], ...]
    remark: str | None


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
    if end is None:
        why = (
            f"took longer than {limits.pdf_seconds:g} s"
            if status is None
            else "made its reader fail, so it is damaged or made to do that"
        )
        if not texts:
            raise DocumentError(f"cannot be read: it {why}")
        remark = f"is read up to page {texts[-1][0]}: it {why}"
    elif end["end"] == "long":
        remark = f"is read up to page {texts[-1][0] if texts else 0} of {end['pages']}, as it is very long"
    else:
        remark = None
    with_text = tuple((number, clean) for number, text in texts if (clean := _HYPHENS.sub("", text)).strip())
    if not with_text:
        raise DocumentError(f"holds no text on its {len(texts)} pages; pictures of pages cannot be searched")
    return Pages(with_text, remark)


def _run(file: BinaryIO, limits: Limits) -> tuple[bytes, int | None]:
    """What the process wrote, and its exit status; None where its time was up."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # of the file itself, whatever is buffered of it here
    arguments = [str(limits.pdf_pages), str(limits.characters), str(limits.pdf_memory)]
    process = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER), *arguments],  # -P: what lies in the folder is not imported
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
