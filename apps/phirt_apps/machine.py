"""`phirt devices`: what can compute on this machine, and which of it a request would use.

Knows the operating system's word about the processor. What the runtime would choose, it asks the runtime.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from phirt.runtime import session

from .show import Output, one_line, plain_table


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


def devices(out: Output, *, as_json: bool) -> None:
    """Writes the execution providers that onnxruntime offers, the one used by default, and the processor."""
    used = session.resolve_providers(None)
    cpu, cores = cpu_name(), usable_cores()
    if as_json:
        out.json({"cpu": cpu, "cores": cores, "providers": list(session.devices()), "used": list(used)})
        return
    table = plain_table("provider", "used by default")
    for name in session.devices():
        table.add_row(name, "yes" if name in used else "")
    out.table(table)
    out.answer(f"\ncpu: {cpu}, {cores} logical cores usable\n")
