"""How much of a folder is read, and what may be spent on one file of it.

Knows numbers. A test makes its own; a user has these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What is beyond a limit is left out, and a line says so."""

    files: int = 20_000
    depth: int = 32  # folders within folders
    text_bytes: int = 20_000_000
    pdf_bytes: int = 200_000_000
    pdf_pages: int = 5_000
    pdf_seconds: float = 60.0
    pdf_memory: int = 2 << 30  # where the system keeps to it: Windows does not, macOS may not
    characters: int = 20_000_000  # of the text in one file
    passages: int = 200_000  # of all files: 300 MB of vectors at a width of 384


LIMITS = Limits()
