"""What the tests of the extra `optimum` share: small checkpoints of families that phirt does not build."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch


def _make_importable(name: str, path: Path) -> ModuleType:
    """Tests are collected without packages, so modules they share are made importable by name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_HERE = Path(__file__).parent
_make_importable("transformers_models", _HERE.parent / "export" / "transformers_models.py")
_make_importable("foreign_models", _HERE / "foreign_models.py")

# The models are tiny; threads would only wait for each other.
torch.set_num_threads(1)
