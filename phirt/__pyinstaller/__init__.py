"""Tells PyInstaller where phirt's hook lies, so that a program that embeds phirt freezes without options.

Found through the entry point `pyinstaller40`; nothing of the runtime imports it.
"""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder with `hook-phirt.py`."""
    return [str(Path(__file__).parent)]
