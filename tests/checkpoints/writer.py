"""Writes random weights as safetensors, shard by shard, a slab of rows at a time.

A tensor's values are a function of the seed, its name and its shape, so two layouts of one model can be
written with equal weights without holding either.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

_SLAB = 1 << 22  # elements
_ITEMSIZE = 2  # bfloat16
_LORA_GAIN = 0.4  # a branch changes the projection, and does not drown it


def values(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """float32 elements of a tensor in slabs, scaled so that activations keep their size throughout."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    total = math.prod(shape)
    for start in range(0, total, _SLAB):
        noise = rng.standard_normal(min(_SLAB, total - start), np.float32)
        if name.endswith("global_invstd"):
            yield 0.5 + np.abs(noise)
        elif "norm" in name and name.endswith("weight"):
            yield 1 + 0.2 * noise
        elif len(shape) >= 2 and name.endswith("weight"):
            gain = _LORA_GAIN if ".lora_B." in name else 1.2
            yield noise * np.float32(gain * math.prod(shape[1:]) ** -0.5)
        else:
            yield 0.3 * noise


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """uint16 bits of the nearest bfloat16, ties to even."""
    bits = array.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def write_file(path: Path, shapes: Shapes, drawn_as: Mapping[str, str], seed: int) -> None:
    """One safetensors file; `drawn_as` gives the name under which a tensor's values are drawn."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + _ITEMSIZE * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            _write_tensor(file, drawn_as.get(name, name), shape, seed)


def write_shards(
    folder: Path, shapes: Shapes, drawn_as: Mapping[str, str], seed: int, shard_bytes: int
) -> None:
    """All tensors in files of about `shard_bytes`, with their index; one plain file where they fit."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = _ITEMSIZE * math.prod(shape)
        if used and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shapes, drawn_as, seed)
        return
    placed = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / file, shard, drawn_as, seed)
        placed |= dict.fromkeys(shard, file)
    total = sum(_ITEMSIZE * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], seed: int) -> None:
    for slab in values(name, shape, seed):
        file.write(as_bfloat16(np.ascontiguousarray(slab, np.float32)).data)
