"""What is given back is gone from the process and nothing is lost."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import psutil
import pytest

from phirt.runtime import system as memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's table of mappings")
SIZE = 64 * mmap.PAGESIZE


def resident(path: Path) -> int:
    """kB of a mapped file that are resident."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ")[0].endswith(":"):
            found = line.endswith(f" {path}")
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "with two  spaces.data"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def test_pages_that_were_only_read_go_and_come_back(path):
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        content = bytes(view)
        assert resident(path) == SIZE // 1024
        memory.release_mapped_pages([path])
        assert resident(path) == 0
        assert bytes(view) == content


def test_what_was_written_stays(path):
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[5] = 99
        memory.release_mapped_pages([path])
        assert view[5] == 99


def test_other_files_are_left_alone(path, tmp_path):
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) == 0
        memory.release_mapped_pages([tmp_path / "another", tmp_path])
        assert resident(path) > 0


def test_freed_memory_goes_back():
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    small = [b"x" * (60000 + i % 2) for i in range(2000)]  # below the size that gets a mapping of its own
    last = b"y" * 60000  # holds the end of the heap, so that it does not shrink by itself
    full = anonymous()
    del small
    memory.trim_heap()
    assert anonymous() < full - 100_000
    assert len(last) == 60000


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "1000000\n"}, 1_000_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "500\n"}, 500),
        (
            {"proc/self/cgroup": "5:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2000\n"},
            2000,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        (
            {"proc/self/cgroup": "5:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63)},
            None,
        ),
        ({}, None),
    ],
)
def test_usable_memory_is_what_control_groups_allow(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.usable_memory(tmp_path) == (expected or psutil.virtual_memory().total)
