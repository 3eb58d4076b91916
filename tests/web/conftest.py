"""The host for JavaScript, compiled once for all tests, and a package for it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock

_spec = importlib.util.spec_from_file_location("web_host", Path(__file__).with_name("web_host.py"))
assert _spec is not None and _spec.loader is not None
sys.modules["web_host"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["web_host"])

from web_host import NANO, Host, compiled  # noqa: E402

from phirt_export.mobile.package import write_package  # noqa: E402
from phirt_export.mobile.profiles import read_profile  # noqa: E402


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "web"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def host(shared_folder: Path) -> Host:
    """The compiled host; skips where Node or its packages are missing."""
    return compiled(shared_folder / "host")


@pytest.fixture(scope="session")
def nano_package(shared_folder: Path) -> Path:
    """nano as a package for browsers and Node."""
    folder = shared_folder / "nano-web"
    with FileLock(shared_folder / "package.lock"):
        if not folder.is_dir():
            write_package(NANO, folder, read_profile("web"), None, lambda _: None)
    return folder
