"""Pages of mapped files that a process holds although it is done with them.

onnxruntime maps weights from their files, reads them once to pack them, and keeps some of the mappings (those
of matrices inside an If). Their pages cost nothing when memory is short, but count as the process's own until
then. Knows Linux's table of mappings; elsewhere nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_DONT_NEED = 4  # MADV_DONTNEED, <asm-generic/mman-common.h>
_TABLE = Path("/proc/self/smaps")


def give_back(files: Collection[Path]) -> None:
    """Lets the system take back the resident pages of these mapped files; whatever is read again comes from
    the file. Mappings that were written to are left alone: what they hold is in no file.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError, ValueError):
        names = {str(path.resolve()) for path in files}
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, stop in list(_clean(names)):
            madvise(start, stop - start, _DONT_NEED)


def _clean(names: Collection[str]) -> Iterator[tuple[int, int]]:
    """Address ranges that show one of the named files and have no page of their own."""
    start = stop = 0
    ours = False
    for line in _TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        first, _, rest = line.partition(" ")
        if first.endswith(":"):
            if ours and first == "Anonymous:" and int(rest.split()[0]) == 0:
                yield start, stop
        else:
            begin, _, end = first.partition("-")
            start, stop = int(begin, 16), int(end, 16)
            # Permissions, offset, device, inode, then the name with whatever spaces it has.
            ours = len(fields := rest.split(None, 4)) == 5 and fields[4] in names
