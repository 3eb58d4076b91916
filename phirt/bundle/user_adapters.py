"""The adapters that a user brings for a bundle: folders by the names that chats choose them by.

Knows which bundles take adapters, and what a name may be. What a folder holds is `peft`'s matter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from phirt.bundle.lora import LORA_DECODER, Lora
from phirt.bundle.manifest import Manifest
from phirt.errors import AdapterError, ConfigError, not_enough_memory

_LONGEST_NAME = 200

AdapterFolders = Mapping[str, str | os.PathLike[str]]


def read_adapters(manifest: Manifest, folders: AdapterFolders | None) -> dict[str, Lora]:
    """The adapters by name. Raises AdapterError where one cannot be read or the bundle takes none, and
    ConfigError for what is no mapping of names to folders.
    """
    if not folders:
        return {}
    if not isinstance(folders, Mapping):
        raise ConfigError(
            f"adapters is a {type(folders).__name__}, accepted: a dict of names and folders, such as "
            '{"mine": "folder"}'
        )
    for name, folder in folders.items():
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise ConfigError(
                f"adapters names one {name!r:.80}, accepted: 1 to {_LONGEST_NAME} printable characters"
            )
        if not isinstance(folder, str | os.PathLike):
            raise ConfigError(f"the adapter {name!r} is a {type(folder).__name__}, accepted: its folder")
    if manifest.static is not None:
        raise AdapterError(
            f"the graphs of the bundle {manifest.name!r} for {manifest.variant} are of one size and take no "
            "adapters; leave --provider out to load it on the CPU, or merge the adapter and export that"
        )
    if LORA_DECODER not in manifest.graphs:
        raise AdapterError(
            f"the bundle {manifest.name!r} takes no adapters: it was exported before there were inputs for "
            "them; export it again"
        )
    return {name: _read(name, Path(folder), manifest) for name, folder in folders.items()}


def _read(name: str, folder: Path, manifest: Manifest) -> Lora:
    from phirt.bundle.peft import read_lora  # few bring adapters

    try:
        return read_lora(folder, manifest.geometry)
    except MemoryError as error:
        raise not_enough_memory(f"read the adapter {name!r}") from error
