"""Devices: providers with options, threads that the affinity mask, the control group and the cores allow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import phirt
from phirt.errors import ProviderError
from phirt.generate.kv_cache import KVCache
from phirt.runtime import cpus, device, session
from phirt.runtime.device import CPU, Device
from phirt.runtime.tensor import DeviceTensor, HostTensor

CPU_NAME = "CPUExecutionProvider"


@pytest.fixture
def two_providers(monkeypatch):
    """An installation that also offers CUDA, by its word."""
    monkeypatch.setattr(device.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU_NAME])


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ((CPU_NAME, {}),)),
        ("cuda", (("CUDAExecutionProvider", {}),)),
        (["CUDA", "cpu"], (("CUDAExecutionProvider", {}), (CPU_NAME, {}))),
        (("cuda", {"device_id": 1}), (("CUDAExecutionProvider", {"device_id": "1"}),)),
        ([("cuda", {"a": "b"}), "cpu"], (("CUDAExecutionProvider", {"a": "b"}), (CPU_NAME, {}))),
    ],
)  # fmt: skip
def test_providers_are_named_with_or_without_options(two_providers, named, expected):
    made = Device.named(named)
    assert made.providers == expected
    assert made.is_cpu == (named is None)
    assert made.io_dtype == ("float32" if named is None else "float16")


@pytest.mark.parametrize("named", ["rocm", ["cpu", "rocm"], ("rocm", {"a": "b"})])
def test_a_provider_that_is_not_there_is_named(named):
    with pytest.raises(ProviderError, match=r"rocm is not available here; available: .*CPUExecutionProvider"):
        Device.named(named)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_whose_driver_is_missing_is_an_error(two_providers, bundle):
    # onnxruntime itself warns and goes on with the CPU, because its CUDA libraries are not installed.
    with pytest.raises(ProviderError, match="CUDAExecutionProvider cannot be used here"):
        phirt.load(bundle, providers="cuda")


def test_options_reach_onnxruntime(bundle, monkeypatch):
    seen: list[object] = []
    real = session.ort.InferenceSession

    def record(path, **options):
        seen.append(options["providers"])
        return real(path, **options)

    monkeypatch.setattr(session.ort, "InferenceSession", record)
    phirt.load(bundle, providers=("cpu", {"arena_extend_strategy": "kSameAsRequested"}), threads=1)
    assert seen == [[(CPU_NAME, {"arena_extend_strategy": "kSameAsRequested"})]]


# Linux's files, as they are found on machines and in containers.
FILES = {
    "v2": {"proc/self/cgroup": "0::/user.slice/job\n",
           "sys/fs/cgroup/user.slice/job/cpu.max": "150000 100000\n"},
    "v2 of a parent": {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                       "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"},
    "v2 in a container": {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
    "v2 without limit": {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
    "v1": {"proc/self/cgroup": "3:cpu,cpuacct:/job\n1:memory:/\n",
           "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n",
           "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
    "v1 in a container": {"proc/self/cgroup": "3:cpu,cpuacct:/docker/0123\n",
                          "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
                          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
    "v1 without limit": {"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                         "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
    "nonsense": {"proc/self/cgroup": "what\n", "sys/fs/cgroup/cpu.max": "1 0\n"},
    "nothing": {},
}  # fmt: skip
QUOTAS = {"v2": 1.5, "v2 of a parent": 2.0, "v2 in a container": 0.5, "v1": 3.0, "v1 in a container": 2.5}


@pytest.mark.parametrize("case", FILES)
def test_quotas_of_control_groups_are_read(tmp_path, case):
    for name, content in FILES[case].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpus.quota(tmp_path) == QUOTAS.get(case)


@given(st.binary(max_size=40))
def test_whatever_the_files_say_is_no_error(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("root")
    (root / "proc/self").mkdir(parents=True)
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "proc/self/cgroup").write_bytes(content)
    (root / "sys/fs/cgroup/cpu.max").write_bytes(content)
    limit = cpus.quota(root)
    assert limit is None or limit > 0


def machine(root: Path, siblings: list[str], cpu_max: str = "max 100000") -> Path:
    """A machine whose logical processor i shares a core with `siblings[i]`."""
    for number, shared in enumerate(siblings):
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(shared + "\n")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(cpu_max)
    return root


PAIRS = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]


@pytest.mark.parametrize(
    ("siblings", "usable", "cpu_max", "threads", "count"),
    [
        (["0", "1", "2", "3"], {0, 1, 2, 3}, "max 100000", None, 4),  # the whole machine
        (PAIRS, set(range(8)), "max 100000", None, 4),  # cores, not their second threads
        (["0", "1", "2", "3"], {1}, "max 100000", 1, 1),  # case 03: taskset -c 1
        (["0", "1", "2", "3"], {1, 3}, "max 100000", 2, 2),
        (PAIRS, {0, 4}, "max 100000", 1, 1),  # both of one core
        (PAIRS, {0, 1, 4}, "max 100000", 2, 2),
        (["0", "1", "2", "3"], {0, 1, 2, 3}, "200000 100000", 2, 2),
        (["0", "1", "2", "3"], {0, 1, 2, 3}, "50000 100000", 1, 1),
        (["0", "1", "2", "3"], {0, 1, 2, 3}, "390000 100000", 3, 3),
        (["0", "1", "2", "3"], {0, 1, 2, 3}, "900000 100000", None, 4),
        (["0", "1", "2", "3"], {0}, "300000 100000", 1, 1),
    ],
)
def test_the_default_takes_what_is_allowed(tmp_path, monkeypatch, siblings, usable, cpu_max, threads, count):
    root = machine(tmp_path, siblings, cpu_max)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: len(siblings))
    assert cpus.default_threads(root) == threads
    assert cpus.thread_count(None, root) == count
    assert cpus.thread_count(7, root) == 7


def test_where_the_system_says_nothing_psutil_is_asked(tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 2)
    assert cpus.thread_count(None, tmp_path) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="masks are Linux's")
def test_a_process_on_one_processor_computes_in_one_thread(bundle):
    code = """
import os, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import phirt
from phirt.runtime.device import CPU
before = len(os.listdir("/proc/self/task"))
model = phirt.load(sys.argv[1])
end = time.monotonic() + 10  # the thread that opened the graph was joined, but the system may still list it
while (more := len(os.listdir("/proc/self/task")) - before) and time.monotonic() < end:
    time.sleep(0.01)
print(CPU.thread_count, more)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "1 0\n"


def test_threads_that_are_named_are_taken(monkeypatch):
    monkeypatch.setattr(device, "default_threads", lambda: 3)
    assert CPU.session_options(spinning=True).intra_op_num_threads == 3
    assert Device.cpu(5).session_options(spinning=True).intra_op_num_threads == 5
    monkeypatch.setattr(device, "default_threads", lambda: None)
    assert CPU.session_options(spinning=True).intra_op_num_threads == 0  # onnxruntime's choice


@pytest.mark.parametrize("make", [HostTensor, lambda array: DeviceTensor(array.shape, array.dtype, "cpu")])
def test_tensors_keep_their_first_positions(make):
    rng = np.random.default_rng(1)
    tensor = make(np.zeros((1, 2, 6, 3), np.float32))
    first, second = (rng.standard_normal((1, 2, count, 3)).astype(np.float32) for count in (4, 2))
    tensor.write(first)
    np.testing.assert_array_equal(tensor.read(4), first)
    tensor.write(second)
    np.testing.assert_array_equal(tensor.read(2), second)
    np.testing.assert_array_equal(tensor.read(4)[:, :, 2:], first[:, :, 2:])
    np.testing.assert_array_equal(tensor.value.numpy()[:, :, :4], tensor.read(4))
    assert tensor.nbytes == 144


def test_a_cache_in_a_devices_memory_grows_copies_and_restores(monkeypatch):
    monkeypatch.setattr(Device, "allocate", lambda self, shape, dtype: DeviceTensor(shape, dtype, "cpu"))
    cache = KVCache(2, 1, 4, 1024)
    values = np.random.default_rng(2).standard_normal((1, 1, 200, 4)).astype(np.float32)
    cache.restore(dict.fromkeys(cache.names, values), 200)
    cache.reserve(900)
    assert cache.capacity == 1024
    for exported in (dict(cache.export()), dict(cache.copy().export())):
        for array in exported.values():
            np.testing.assert_array_equal(array, values)


def test_devices_are_those_of_onnxruntime_without_remote_ones(monkeypatch):
    offered = ["AzureExecutionProvider", "CUDAExecutionProvider", CPU_NAME]
    monkeypatch.setattr(device.ort, "get_available_providers", lambda: offered)
    assert phirt.devices() == ("CUDAExecutionProvider", CPU_NAME)
