"""The library for apps on this machine: what it needs, how it is built and run, and the small model for it.
What cannot be built here is skipped, with the reason: see `apps/native/tools/fetch_onnxruntime.py` for what
is needed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "apps" / "native"
NANO = ROOT / "tests" / "bundles" / "nano"


def load_test_module(name: str, path: Path) -> Any:
    """A module of other tests, which are no packages."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def onnxruntime_parts() -> Path:
    """The folder that fetch_onnxruntime.py has filled; skips without it."""
    folder = os.environ.get("PHIRT_ONNXRUNTIME", "")
    if not folder or not (Path(folder) / "include" / "onnxruntime_c_api.h").is_file():
        pytest.skip("PHIRT_ONNXRUNTIME names no folder of apps/native/tools/fetch_onnxruntime.py")
    return Path(folder)


def require_programs(*names: str) -> None:
    """Skips where one of these programs is not installed."""
    if missing := [name for name in names if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


# Compiled in half the time. What is shipped is compiled as it is for users: `programs`.
HARDLY_OPTIMIZED = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1")


def built(folder: Path, library: Path, *options: str, program: str = "all") -> Path:
    """The folder of programs, or of the one that is named, of a finished build, made once however many
    processes ask for it.
    """
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").is_file():
            include = onnxruntime_parts() / "include"
            given = [f"-DONNXRUNTIME_INCLUDE={include}", f"-DONNXRUNTIME_LIBRARY={library}", *options]
            configure = ["cmake", "-G", "Ninja", "-S", str(NATIVE), "-B", str(folder), *given]
            for command in (configure, ["cmake", "--build", str(folder), "--target", program]):
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
                assert "warning:" not in done.stdout, done.stdout
            (folder / "done").touch()
    return folder / "tests"


def run(program: Path, *words: object, data: bytes = b"", through: Sequence[str] = ()) -> bytes:
    """What the program writes; it must end well."""
    command = [*through, str(program), *map(str, words)]
    done = subprocess.run(command, input=data, capture_output=True, timeout=300)
    assert done.returncode == 0, (done.stdout[-2000:] + done.stderr[-2000:]).decode("utf-8", "replace")
    return done.stdout
