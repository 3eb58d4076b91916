"""What the bytes of an export depend on, as one digest: the checkpoint's files, the settings, and this code.

Knows files and their headers. Reads no weight: a shard is known by its size, its time of change and its table
of contents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import phirt_export
import phirt_quant

_MAX_HEADER_BYTES = 16 << 20
_WEIGHTS, _DOCUMENTS = ".safetensors", ".json"


def identity(checkpoint: Path, settings: Mapping[str, Any]) -> str:
    """Hex digest of a checkpoint folder's state, these settings (plain JSON values) and the exporter's code.

    Two calls give the same digest only if exports would quantize to the same bytes. The place of the folder
    does not matter, nor do folders in it that cannot be read.
    """
    described = {
        "checkpoint": [
            _described(path, checkpoint)
            for folder in (checkpoint, *sorted(p for p in checkpoint.iterdir() if _is_readable_folder(p)))
            for path in sorted(folder.iterdir())
            if path.suffix in (_WEIGHTS, _DOCUMENTS) and path.is_file()
        ],
        "settings": dict(settings),
        "code": _code(),
        "numpy": np.__version__,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _is_readable_folder(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def _described(path: Path, folder: Path) -> list[Any]:
    state = path.stat()
    name = path.relative_to(folder).as_posix()
    with path.open("rb") as file:
        if path.suffix == _WEIGHTS:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, _MAX_HEADER_BYTES))
            return [name, state.st_size, state.st_mtime_ns, hashlib.sha256(header).hexdigest()]
        return [name, hashlib.file_digest(file, "sha256").hexdigest()]


def _code() -> str:
    """Digest of the modules that choose, quantize and lay out weights."""
    digest = hashlib.sha256()
    for package in (phirt_export, phirt_quant):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
