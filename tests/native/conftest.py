"""The library for apps, built once for all tests, and a package for it."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

_spec = importlib.util.spec_from_file_location("native_host", Path(__file__).with_name("native_host.py"))
assert _spec is not None and _spec.loader is not None
sys.modules["native_host"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["native_host"])

from native_host import NANO, built, onnxruntime_parts, require_programs  # noqa: E402

from phirt_export.mobile.package import write_package  # noqa: E402
from phirt_export.mobile.profiles import read_profile  # noqa: E402


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "native"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def host_library(shared_folder: Path) -> Path:
    """onnxruntime's library of this machine: that of the wheel, under the name that it is linked by."""
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.submodule_search_locations
    found = list(Path(spec.submodule_search_locations[0]).glob("capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("the wheel of onnxruntime has no library here that could be linked")
    folder = shared_folder / "onnxruntime"
    folder.mkdir(exist_ok=True)
    with FileLock(shared_folder / "onnxruntime.lock"):
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            if not (folder / name).exists():
                (folder / name).symlink_to(found[0])
    return folder / "libonnxruntime.so"


@pytest.fixture(scope="session")
def programs(shared_folder: Path, host_library: Path) -> Path:
    """The test programs for this machine."""
    onnxruntime_parts()
    require_programs("cmake", "ninja", "c++")
    return built(shared_folder / "build", host_library)


@pytest.fixture(scope="session")
def sanitized(shared_folder: Path, host_library: Path) -> Path:
    """The same with AddressSanitizer and UndefinedBehaviorSanitizer."""
    onnxruntime_parts()
    require_programs("cmake", "ninja", "c++")
    return built(
        shared_folder / "sanitized",
        host_library,
        "-DPHIRT_SANITIZE=ON",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-Og",
    )


@pytest.fixture(scope="session")
def nano_package(shared_folder: Path) -> Path:
    """nano as a package for Android."""
    folder = shared_folder / "nano-android"
    with FileLock(shared_folder / "package.lock"):
        if not folder.is_dir():
            write_package(NANO, folder, read_profile("android"), None, lambda _: None)
    return folder
