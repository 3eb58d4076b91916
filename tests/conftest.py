"""Fixtures for all tests: where the shared data and the fast bundle lie; no cache and no settings of the
user's; how processes share out the tests and the processors.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

os.environ["PHIRT_CACHE"] = "off"
# Whether phirt-kernels is installed changes nothing; tests/kernels takes it all the same.
os.environ.setdefault("PHIRT_KERNELS", "off")
os.environ["PHIRT_CONFIG"] = str(Path(__file__).with_name("no-settings.toml"))  # nobody's own defaults
NANO = Path(__file__).with_name("bundles") / "nano"
os.environ["PHIRT_MODEL"] = str(NANO)  # commands without -m; see `embedded`
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: threads of models this small only wait for each other


def _take_own_processors() -> None:
    """Keeps this process of several, and its children, to their share of the processors: threads that wait
    for each other on processors that another process has burn what that one needs.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if count == 1 or not hasattr(os, "sched_setaffinity"):
        return
    usable = sorted(os.sched_getaffinity(0))
    if count <= len(usable):
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        os.sched_setaffinity(0, usable[number % count :: count])


_take_own_processors()


def _sharing_out() -> Any:
    """The module beside this one, which needs pytest-xdist."""
    path = Path(__file__).with_name("sharing_out.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins, where processes share out the tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = _sharing_out().place
        items.sort(key=lambda item: place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How they do, unless the command names another way."""
    return _sharing_out().Sharing(config, log) if config.option.dist == "load" else None


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def nano() -> Path:
    """A trained bundle of 16 MB that opens in a moment and knows text, pictures and recordings, with adapters
    for them; do not change it. For what needs no training, tests make bundles with random weights.
    """
    return NANO


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands without -m use the model that comes with phirt."""
    monkeypatch.delenv("PHIRT_MODEL")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real photos, recordings and text, beside the repository; tests that need it skip
    without it.
    """
    if not SHARED.is_dir():
        pytest.skip(f"the shared data are not at {SHARED}")
    return SHARED
