"""One Ray cluster for the session, in a home of its own; what needs it is skipped where Ray is missing."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from phirt_train.curate.executor import Executor, InProcess

if TYPE_CHECKING:
    from phirt_train.curate.ray_executor import RayExecutor


@pytest.fixture(scope="session")
def four_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    """Four processes, whatever the machine has."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install '.[scale]'")
    home = os.environ.get("HOME")
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))  # it writes a token there
    from phirt_train.curate.ray_executor import RayExecutor

    executor = RayExecutor(workers=4)
    yield executor
    executor.close()
    if home is not None:
        os.environ["HOME"] = home


@pytest.fixture
def here() -> Executor:
    """Everything in this process."""
    return InProcess()


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes records as a file of JSON lines."""
    import json

    def write(name: str, *records: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
        return path

    return write
