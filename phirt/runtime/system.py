"""Memory as the system counts it: how much there is, whether there is room, and what a process holds though
it is done with it.

onnxruntime maps weights from their files, reads them once to pack them, and keeps some of the mappings (those
of matrices inside an If): their pages cost nothing when memory is short, but count as the process's own until
then. And the C library keeps what was freed in case it is asked for again. Both are given back. Knows Linux
and its C library; elsewhere nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from phirt.runtime.cgroups import group_folders

_ROOT = Path("/")
_NO_PERMISSIONS = 0  # PROT_NONE
_DONT_NEED = 4  # MADV_DONTNEED, <asm-generic/mman-common.h>
_MAPPINGS = Path("/proc/self/maps")
# One entry for each page: Documentation/admin-guide/mm/pagemap.rst of Linux.
_PAGES = Path("/proc/self/pagemap")
_PAGE_ENTRY_BYTES = 8
_FLAGS_SHIFT = 61  # below: where it is
_OF_A_FILE = 0b001
_PRESENT_OR_SWAPPED = 0b110


def usable_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that this process may use at most: the machine's, or what its control groups allow."""
    limits = [_physical_memory()]
    for folder in group_folders(root, "memory", ("memory",)):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int((folder / name).read_text(encoding="ascii")))
    return min(limits)


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        import psutil  # 20 ms, which every start would take

        return int(psutil.virtual_memory().total)


def has_address_space(nbytes: int) -> bool:
    """Whether this process may map so many bytes more (`ulimit -v`); what is physically there is not asked.

    Told before work whose libraries end the process where they get no memory.
    """
    if sys.platform != "linux" or nbytes <= 0:
        return True
    try:  # without permissions the pages are nobody's, and cost nothing
        mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, _NO_PERMISSIONS).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def release_mapped_pages(files: Collection[Path]) -> None:
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


def trim_heap() -> None:
    """Lets the system take back memory that was freed. For after work that took much more than what stays."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def _clean(names: Collection[str]) -> Iterator[tuple[int, int]]:
    """Address ranges that show one of the named files and have no page of their own.

    /proc/self/smaps says so too, but walks through every page of the process for it.
    """
    import numpy as np  # whether there is room for it is asked here too

    with _PAGES.open("rb", buffering=0) as pages:
        for line in _MAPPINGS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            # Addresses, permissions, offset, device, inode, then the name with whatever spaces it has.
            fields = line.split(None, 5)
            if len(fields) < 6 or fields[5] not in names:
                continue
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            pages.seek(start // mmap.PAGESIZE * _PAGE_ENTRY_BYTES)
            entries = pages.read((stop - start) // mmap.PAGESIZE * _PAGE_ENTRY_BYTES)
            flags = np.frombuffer(entries, np.uint64) >> _FLAGS_SHIFT
            if not np.any((flags & _PRESENT_OR_SWAPPED != 0) & (flags & _OF_A_FILE == 0)):
                yield start, stop
