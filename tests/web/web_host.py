"""The host for JavaScript on this machine: what it needs, how it is compiled and run. What is not installed
is skipped, with the reason: `npm ci --prefix apps/web` installs it, or PHIRT_WEB_MODULES names its folder.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "apps" / "web"
NANO = ROOT / "tests" / "bundles" / "nano"
_TIMEOUT = 300


def modules() -> Path:
    """The folder of installed packages; skips without it, or without Node."""
    if shutil.which("node") is None:
        pytest.skip("not installed: node")
    folder = Path(os.environ.get("PHIRT_WEB_MODULES") or WEB / "node_modules")
    if not (folder / ".bin" / "tsc").exists():
        pytest.skip(f"the packages of apps/web are not in {folder}: npm ci --prefix apps/web")
    return folder.resolve()


@dataclasses.dataclass(frozen=True)
class Host:
    """A compiled copy of apps/web."""

    folder: Path

    def node(self, program: str, *words: object, data: str = "") -> subprocess.CompletedProcess[str]:
        """Runs one of the programs in `checks`, or a file of the folder's."""
        path = self.folder / program
        if not path.is_file():
            path = self.folder / "build" / "checks" / f"{program}.js"
        command = ["node", str(path), *map(str, words)]
        return subprocess.run(
            command, input=data, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )

    def parts(self, jobs: Sequence[dict[str, Any]]) -> list[Any]:
        """What parts of the host make of jobs, in their order."""
        lines = "".join(json.dumps(job) + "\n" for job in jobs)
        done = self.node("parts", data=lines)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def converse(self, package: Path, turns: Sequence[dict[str, Any]]) -> list[Any]:
        """What the host answers in one conversation, turn by turn."""
        done = self.node("converse", package, data=json.dumps(turns))
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def compiled(folder: Path) -> Host:
    """A copy of apps/web with what the compiler makes of it, once however many processes ask for it."""
    installed = modules()
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "build"))
            (folder / "node_modules").symlink_to(installed)
            command = [installed / ".bin" / "tsc", "-p", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "done").touch()
    return Host(folder)


def native_tests(name: str) -> Any:
    """A module of the tests of the library for apps, which are no package: all hosts have the same cases."""
    for one in ("native_host", name):
        if one not in sys.modules:
            path = ROOT / "tests" / "native" / f"{one}.py"
            spec = importlib.util.spec_from_file_location(one, path)
            assert spec is not None and spec.loader is not None
            sys.modules[one] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[one])
    return sys.modules[name]


def encoded(array: npt.NDArray[Any]) -> str:
    """An array's bytes for a job."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def decoded(text: str, dtype: str) -> npt.NDArray[Any]:
    """An array of what a job gives."""
    return np.frombuffer(base64.b64decode(text), dtype)
