"""How many processors this process may use: its affinity mask, the quota of its control group, and which
logical processors share a core.

Knows the files in which Linux says so, and asks psutil elsewhere. Knows nothing of what they compute.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from phirt.runtime.cgroups import group_folders

_ROOT = Path("/")
# Where version 1 of control groups may show the controller `cpu`.
_VERSION_1 = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def usable_cpus() -> int:
    """Logical processors that this process may run on; a mask counts (taskset, a container's cpuset)."""
    return len(_usable())


def default_threads(root: Path = _ROOT) -> int | None:
    """Threads that computing pays with; None where the whole machine is free, which onnxruntime knows best.

    Kernels keep a core's units busy by themselves, so a second thread on the same core brings nothing; and
    more threads than the quota allows all stand still until the next period.
    """
    cores = _physical(_usable(), root)
    limit = quota(root)
    allowed = cores if limit is None else max(1, min(cores, int(limit)))
    is_whole = len(_usable()) == (os.cpu_count() or 1) and allowed == cores
    return None if is_whole else allowed


def thread_count(threads: int | None, root: Path = _ROOT) -> int:
    """How many threads `threads` or, where it is None, the default stands for."""
    return threads or default_threads(root) or _physical(_usable(), root)


def quota(root: Path = _ROOT) -> float | None:
    """Processors' worth of time that the control groups around this process allow; None where they do not
    limit it.
    """
    return min(_quotas(root), default=None)


def _usable() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _physical(cpus: frozenset[int], root: Path) -> int:
    """Cores that these logical processors lie on."""
    cores = {_core(cpu, root) for cpu in cpus}
    if None not in cores:
        return max(1, len(cores))
    import psutil

    return max(1, min(len(cpus), psutil.cpu_count(logical=False) or len(cpus)))


def _core(cpu: int, root: Path) -> str | None:
    """What names the core of a logical processor: the list of all that share it."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        with contextlib.suppress(OSError, ValueError):
            return (folder / name).read_text(encoding="ascii").strip()
    return None


def _quotas(root: Path) -> Iterator[float]:
    for folder in group_folders(root, "cpu", _VERSION_1):
        yield from _quota(folder, "cpu.max")
        yield from _quota(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _quota(folder: Path, *names: str) -> Iterator[float]:
    """Processors that the files of one group allow: microseconds of computing, and of the period."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        said = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
        share = float(said[0]) / float(said[1]) if said[0] != "max" else 0.0  # version 1 says -1
        if share > 0:
            yield share
