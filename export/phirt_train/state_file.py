"""Tensors and the position of a stage in one file, which appears whole or not at all.

Knows files, names and the digest of the recipe that they belong to. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import sync_file, sync_folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".partial")
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, staging, metadata
    )
    sync_file(staging)
    staging.replace(path)
    sync_folder(path.parent)


def read_state(path: Path, digest: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The position of a stage, and its tensors by the part of the state that they are.

    Raises:
        ConfigError: the state is of another recipe.
    """
    with safe_open(path, "pt") as file:
        position = json.loads(file.metadata()["position"])
        if position["digest"] != digest:
            raise ConfigError(
                f"{path} belongs to another recipe; train into another folder, or delete {path.parent.name} "
                "and the later stages"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return position, _parted(tensors)


def _parted(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a state by the part of it that their names begin with."""
    parts: dict[str, dict[str, Tensor]] = {"weight": {}, "moment": {}, "buffer": {}, "average": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return parts
