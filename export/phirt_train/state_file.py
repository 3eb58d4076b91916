"""Tensors and the position of a stage in one file, which appears whole or not at all.

Knows files, names and the digest of the recipe that they belong to. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
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
        ConfigError: the state is of another recipe, or damaged.
    """
    metadata, tensors = _opened(path, _remedy(path))
    try:
        position: dict[str, Any] = json.loads(metadata["position"])
        if position["digest"] != digest:
            raise ConfigError(
                f"{path} belongs to another recipe; train into another folder, or delete {path.parent.name} "
                "and the later stages"
            )
        return position, _parted(tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"it has no position of a stage ({error!r:.80})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that a stage has left.

    Raises:
        ConfigError: it is missing or damaged.
    """
    return _opened(path, _remedy(path))[1]


def damaged(path: Path, why: str) -> ConfigError:
    """What is said of a file of a stage that cannot be used."""
    return ConfigError(f"{path} is damaged: {why}; {_remedy(path)}")


def _remedy(path: Path) -> str:
    if path.name.startswith("state."):
        return "delete that file, and the stage begins anew"
    return f"delete {path.parent} and the folders of the stages that start from it"


def _opened(path: Path, remedy: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    if not path.is_file():
        raise ConfigError(f"{path} is missing; {remedy}")
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {error}; {remedy}") from error


def _parted(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a state by the part of it that their names begin with."""
    parts: dict[str, dict[str, Tensor]] = {"weight": {}, "moment": {}, "buffer": {}, "average": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return parts
