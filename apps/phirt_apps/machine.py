"""What the operating system says about the processor.

Knows the system's files. Does not know what the runtime would choose.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from phirt.runtime.cpus import quota, thread_count, usable_cpus

from .output import one_line


def cpu_name() -> str:
    """The processor's name as the system gives it, or its architecture."""
    try:
        if sys.platform.startswith("linux"):
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                    return one_line(value)
    except OSError:
        pass
    return one_line(platform.processor()) or platform.machine() or "unknown"


def cores_and_threads(threads: int | None) -> str:
    """What may be used of the processor, and what computing takes of it: for a line of a table."""
    limit = quota()
    share = "" if limit is None else f", {limit:g} of them at a time (the control group's quota)"
    used = thread_count(threads)
    return f"{usable_cpus()} logical cores usable{share}; {used} thread{'s' if used > 1 else ''}"
