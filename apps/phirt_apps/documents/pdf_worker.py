"""The text of a PDF on standard input, page by page, in a process of its own: run as a file, by `pdf`.

A line of JSON for each page, one at the end that says it is the end. A hostile file may end this process,
keep it busy or have it ask for memory without end. Whoever started it bounds the time; memory, and the time
in case that one is gone, it bounds itself, where the system can. Imports nothing of phirt.
"""

from __future__ import annotations

import contextlib
import json
import sys

_PASSWORD = 4  # FPDF_ERR_PASSWORD and FPDF_ERR_SECURITY of fpdfview.h
_SECURITY = 5


def main(most_pages: int, most_characters: int, memory: int, seconds: int) -> None:
    """Writes the pages and how it ended: "end", or the word of what went wrong."""
    _bound(memory, seconds)
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(sys.stdin.buffer.read())
        pages = len(document)
    except pypdfium2.PdfiumError as error:
        code = getattr(error, "err_code", None)
        _write({"end": "locked" if code in (_PASSWORD, _SECURITY) else "damaged"})
        return
    left = most_characters
    for number in range(min(pages, most_pages)):
        text = ""
        with contextlib.suppress(pypdfium2.PdfiumError):  # a damaged page among good ones
            text = document[number].get_textpage().get_text_bounded()
        if text[:left] or not text:
            _write({"page": number + 1, "text": text[:left]})
        if len(text) > left:
            _write({"end": "long", "pages": pages})
            return
        left -= len(text)
    _write({"end": "long" if pages > most_pages else "whole", "pages": pages})


def _bound(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    bounds = ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0))
    for which, most in bounds:
        with contextlib.suppress(OSError, ValueError):  # what is set already may be less; macOS may refuse
            resource.setrlimit(which, (most, most))


def _write(line: dict[str, object]) -> None:
    sys.stdout.buffer.write(json.dumps(line).encode("ascii") + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
