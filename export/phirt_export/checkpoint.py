"""Checkpoint folders: `config.json` and `model.safetensors`, read tensor by tensor through a memory map.

Knows the safetensors container, which tensors a configuration needs, and how to complain about all
differences at once. Knows nothing of graphs. Only safetensors is read: pickled weights can run code when
opened.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phirt.errors import ConfigError
from phirt_export.reference import Model, ModelConfig, load_config

WEIGHTS_NAME = "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_HEADER_BYTES = 100 << 20
# Safetensors names of the element types that weights come in; bfloat16 is the upper half of a float32.
_DTYPES = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
# Bookkeeping of a training run that no graph needs.
_IGNORED_SUFFIXES = (".num_batches_tracked",)
_SHOWN = 8


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor that a checkpoint of this configuration holds."""
    with torch.device("meta"):
        state = Model(config).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith(_IGNORED_SUFFIXES)}


@dataclasses.dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """An opened checkpoint: its configuration, its files, and its tensors as float32 on demand.

    Raises:
        ConfigError: files are missing, damaged or pickled, or tensors are missing, unknown or misshapen (all
            of them are named in one message, before any work is done).
    """

    def __init__(self, folder: Path) -> None:
        _refuse_pickles(folder)
        self.folder = folder
        self.config = load_config(folder)
        path = folder / WEIGHTS_NAME
        if not path.is_file():
            raise ConfigError(f"{folder} holds no {WEIGHTS_NAME}; save the weights as one safetensors file")
        self._entries = _read_header(path)
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._check()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis, float32; only these are read from the file."""
        entry = self._entries[name]
        row = (entry.stop - entry.start) // max(1, entry.shape[0])
        raw = self._bytes[entry.start + start * row : entry.start + stop * row]
        return _to_float32(raw, entry.dtype).reshape(stop - start, *entry.shape[1:])

    def tensor(self, name: str) -> np.ndarray:
        """The whole tensor, float32."""
        entry = self._entries[name]
        return _to_float32(self._bytes[entry.start : entry.stop], entry.dtype).reshape(entry.shape)

    def _check(self) -> None:
        expected = expected_shapes(self.config)
        found = {name: e.shape for name, e in self._entries.items() if not name.endswith(_IGNORED_SUFFIXES)}
        wrong = [
            f"{name} is {list(found[name])}, not {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        groups = {
            "missing": [name for name in expected if name not in found],
            "unknown": [name for name in found if name not in expected],
            "of the wrong shape": wrong,
        }
        problems = [f"{len(names)} {what}: {_some(names)}" for what, names in groups.items() if names]
        if problems:
            raise ConfigError(
                f"{self.folder / WEIGHTS_NAME} does not fit its config.json; " + "; ".join(problems)
            )


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _refuse_pickles(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; a checkpoint is a folder with config.json and {WEIGHTS_NAME}"
        )
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if pickled and not (folder / WEIGHTS_NAME).is_file():
        raise ConfigError(
            f"{folder} holds pickled weights ({_some(pickled)}), which can run code when opened and are "
            f"not read; convert them to {WEIGHTS_NAME}"
        )


def _read_header(path: Path) -> dict[str, _Entry]:
    """The table of contents, every extent checked against the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise ConfigError(f"{path} is not a safetensors file, or it is truncated")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return {name: _entry(raw, 8 + length, size) for name, raw in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} has a damaged header, or it is truncated: {error}") from error


def _entry(raw: Any, base: int, size: int) -> _Entry:
    shape = tuple(int(d) for d in raw["shape"])
    start, stop = (base + int(offset) for offset in raw["data_offsets"])
    dtype = raw["dtype"]
    # Integer bookkeeping such as batch counters is listed but never read, so its type need not be known.
    if dtype in _DTYPES and stop - start != int(np.prod(shape, dtype=np.int64)) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{stop - start} bytes for shape {list(shape)} of {dtype}")
    if not base <= start <= stop <= size or min(shape, default=0) < 0:
        raise ValueError("a tensor lies outside the file")
    return _Entry(dtype, shape, start, stop)


def _to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype not in _DTYPES:
        raise ConfigError(f"weights of type {dtype} are not read; save them as one of {', '.join(_DTYPES)}")
    values = np.frombuffer(raw, dtype=_DTYPES[dtype])
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
