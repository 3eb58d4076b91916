"""What the tests of training share: small data of the real layout, and a finished run of nano in tiny."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from phirt.bundle.manifest import Limits
from phirt_train.context import TrainingContext
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.progress import ignore
from phirt_train.runner import run_recipe

RECIPE = Path(__file__).resolve().parents[2] / "export/recipes/nano"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _beside(name: str) -> Any:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> Any:
    """The module `toy_stage`."""
    return _beside("toy_stage")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(_beside("small_data").write_small_data(tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    results = run_recipe(RECIPE, folder, data, scale="tiny")
    assert [result.name for result in results][-1] == "joint"
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., TrainingContext]:
    """Makes a stage's context around an encoder; data lie in the test's own folder."""

    def make(encoder: ConversationEncoder, **changes: Any) -> TrainingContext:
        values = {
            "stage": "test", "seed": 1, "data": tmp_path, "cache": tmp_path / "cache", "encoder": encoder,
            "device": torch.device("cpu"), "limits": Limits(10**8, 60.0, 1 << 28), "is_fresh": True,
            "report": ignore,
        }  # fmt: skip
        return TrainingContext(**{**values, **changes})

    return make
