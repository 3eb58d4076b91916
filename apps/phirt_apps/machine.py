"""What the operating system says about the processor.

Knows the system's files. Does not know what the runtime would choose.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

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


def usable_cores() -> int:
    """How many logical processors this process may run on; a container's mask counts."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
