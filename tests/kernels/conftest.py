"""The kernels, built once for all processes of a test run: the program of products for this machine, with
sanitizers, and for ARM; the library of operators, if onnxruntime's headers are there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

for _name in ("kernel_cases", "attention_cases", "projection_graphs"):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
    assert _spec is not None and _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])

from kernel_cases import require_programs  # noqa: E402

from phirt.runtime import kernels  # noqa: E402

SOURCE = Path(__file__).resolve().parents[2] / "quant" / "kernels"
WITHOUT_LIBRARY = ("-DPHIRT_KERNELS_TESTS=ON", "-DPHIRT_KERNELS_LIBRARY=OFF")
ARM = "aarch64-linux-gnu"

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds with CMake's options into a folder of this name, once, however many processes ask for it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "kernels"
    shared.mkdir(exist_ok=True)

    def make(name: str, *options: str) -> Path:
        require_programs("cmake", "ninja", "c++")
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (folder / "done").is_file():
                configure = ["cmake", "-G", "Ninja", "-S", str(SOURCE), "-B", str(folder), *options]
                for command in (configure, ["cmake", "--build", str(folder)]):
                    done = subprocess.run(command, capture_output=True, text=True)
                    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
                    assert "warning:" not in done.stdout, done.stdout
                (folder / "done").touch()
        return folder

    return make


def _headers() -> Path | None:
    """onnxruntime's headers, where apps/native/tools/fetch_onnxruntime.py has brought them."""
    folder = Path(os.environ.get("PHIRT_ONNXRUNTIME") or "nowhere", "include")
    return folder if (folder / "onnxruntime_c_api.h").is_file() else None


@pytest.fixture(scope="session")
def built(build: Build) -> Path:
    """The folder with all that can be built for this machine."""
    if (headers := _headers()) is None:
        return build("program", *WITHOUT_LIBRARY)
    return build("all", "-DPHIRT_KERNELS_TESTS=ON", f"-DONNXRUNTIME_INCLUDE={headers}")


@pytest.fixture(scope="session")
def program(built: Path) -> Path:
    """Products on this machine."""
    return built / "products"


@pytest.fixture(scope="session")
def sanitized(build: Build) -> Path:
    """The same, watched by AddressSanitizer and UndefinedBehaviorSanitizer."""
    debug = ("-DPHIRT_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1")
    return build("sanitized", *WITHOUT_LIBRARY, *debug) / "products"


@pytest.fixture(scope="session")
def arm_program(build: Build) -> Path:
    """The same for ARM, for an emulator."""
    require_programs(f"{ARM}-g++", "qemu-aarch64")
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    compiler = (f"-DCMAKE_CXX_COMPILER={ARM}-g++", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    return build("arm", *WITHOUT_LIBRARY, *target, *compiler) / "products"


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Path:
    """The library of operators: that of this source, or of the installed package."""
    if _headers() is not None:
        built = request.getfixturevalue("built")
        return Path(built) / "libphirt_kernels.so"
    if importlib.util.find_spec("phirt_kernels") is not None:
        import phirt_kernels

        if phirt_kernels.library_path().is_file():
            return Path(phirt_kernels.library_path())
    pytest.skip(
        "phirt-kernels is not installed, and PHIRT_ONNXRUNTIME names no folder with headers to build it"
    )


@pytest.fixture
def use_kernels(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened computes with the library."""
    monkeypatch.setattr(kernels, "library", lambda: library)
