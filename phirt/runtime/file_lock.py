"""A lock on a file that one process holds at a time; the system takes it back however the process ends.

Knows how systems lock files. Knows nothing of what a lock is for.
"""

from __future__ import annotations

import sys
from typing import BinaryIO


def take_lock(file: BinaryIO) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError or PermissionError at once where another
    process has it.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
