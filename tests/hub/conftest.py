"""A hub on this machine, an empty cache, and a small checkpoint in two shards."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file


def _make_importable(name: str, path: Path) -> None:
    """Tests are collected without packages, so modules they share are made importable by name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_HERE = Path(__file__).parent
_make_importable("hub_server", _HERE / "hub_server.py")
_make_importable("small_models", _HERE.parent / "export" / "small_models.py")

import hub_server  # noqa: E402
import small_models  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in two shards behind an index, a tokenizer and a template."""
    folder = small_models.save_talking_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    placed = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[hub_server.Hub]:
    """A hub with that checkpoint as `some/model`, beside files that no export needs."""
    server = hub_server.Hub()
    server.publish("some/model", checkpoint)
    unneeded = (
        "pytorch_model.bin",
        "modeling.py",
        "consolidated.safetensors",
        "README.md",
        "onnx/model.onnx",
    )
    server.repos["some/model"] |= dict.fromkeys(unneeded, b"not needed")
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; this process and its children ask the hub of the test."""
    from huggingface_hub import constants

    folder = tmp_path / "hf"
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder / "hub" / "models--some--model"
