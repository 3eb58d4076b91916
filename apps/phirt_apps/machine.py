"""What the operating system says about the processor.

Knows the system's files. Does not know what the runtime would choose.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from phirt.runtime import kernels
from phirt.runtime.cpus import quota, thread_count, usable_cpus

from .output import one_line

# What Linux calls the instruction sets that products of int8 codes use, oldest first: of x86, of ARM.
_FLAGS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX int8",
    "asimddp": "NEON dotprod",
    "i8mm": "NEON i8mm",
    "sve": "SVE",
}


def cpu_name() -> str:
    """The processor's name as the system gives it, or its architecture."""
    named = _said_by_linux("model name", "Model", "Hardware")
    return one_line(named) or one_line(platform.processor()) or platform.machine() or "unknown"


def instruction_sets() -> tuple[str, ...]:
    """Those of the processor that matter for products of int8 codes; empty where the system does not tell."""
    flags = _said_by_linux("flags", "Features").split()
    return tuple(name for flag, name in _FLAGS.items() if flag in flags)


def products() -> str:
    """What multiplies quantized weights on the CPU, and with which instructions."""
    used = kernels.instructions()
    return "onnxruntime" if used is None else f"phirt-kernels with {used}"


def _said_by_linux(*keys: str) -> str:
    """What Linux says of the first processor under one of these keys; else nothing."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys and value.strip():
            return value
    return ""


def cores_and_threads(threads: int | None) -> str:
    """What may be used of the processor, and what computing takes of it: for a line of a table."""
    limit = quota()
    share = "" if limit is None else f", {limit:g} of them at a time (the control group's quota)"
    used = thread_count(threads)
    return f"{usable_cpus()} logical cores usable{share}; {used} thread{'s' if used > 1 else ''}"
