"""fp8 and bitsandbytes: weights that are looked up or scaled back to float32, exactly.

Knows the 8-bit floats with scales for a matrix, its rows or its tiles (DeepSeek-V3's and Qwen3's
`weight_scale_inv`, compressed-tensors' `weight_scale`), and bitsandbytes' 4-bit tables with their absolute
maxima, which may be quantized themselves (QLoRA, arXiv 2305.14314).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from phirt.bundle.tensor_file import StoredTensor, Values
from phirt_export.packed.arrays import array
from phirt_export.packed.matrices import Dequantized

_FLOATS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_TILE = (128, 128)
_MAX_STATE_BYTES = 1 << 16


def fp8(of: Mapping[str, StoredTensor], tile: Sequence[int] | None) -> Dequantized:
    """A matrix of `weight` in 8-bit floats, and a scale for each `tile`. Raises ValueError."""
    weight = of["weight"]
    stored, name = array(weight), next(n for n in ("weight_scale_inv", "weight_scale") if n in of)
    rows, columns = stored.shape
    scales: Values = of[name].tensor()
    scales = scales.reshape(scales.shape if scales.ndim == 2 else (-1, 1))
    high, wide = _tile(scales.shape, (rows, columns), tuple(tile or _TILE))
    values = torch.arange(256, dtype=torch.uint8).view(_FLOATS[weight.dtype]).float().numpy()

    def read(start: int, stop: int) -> Values:
        picked = scales[np.arange(start, stop) // high][:, np.arange(columns) // wide]
        found: Values = values[stored[start:stop]] * picked
        return found

    return Dequantized("fp8", (rows, columns), read)


def _tile(scales: tuple[int, ...], shape: tuple[int, int], tile: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    sizes = []
    for count, size, usual in zip(scales, shape, tile, strict=True):
        found = next((s for s in (size, usual, 1) if s > 0 and -(-size // s) == count), None)
        if found is None:
            raise ValueError(f"scales of {list(scales)} for {list(shape)} in tiles of {list(tile)}")
        sizes.append(found)
    return sizes[0], sizes[1]


def four_bits(of: Mapping[str, StoredTensor], state: StoredTensor) -> Dequantized:
    """A matrix of bitsandbytes' nf4 or fp4. Raises ValueError."""
    raw = array(state)
    if raw.size > _MAX_STATE_BYTES:
        raise ValueError("a quant_state of that size")
    told = json.loads(raw.tobytes())
    rows, columns = (int(size) for size in told["shape"])
    size, table = int(told["blocksize"]), of["weight.quant_map"].tensor()
    packed = array(of["weight"]).reshape(-1)
    maxima = _maxima(of, told)
    if packed.size * 2 != rows * columns or columns % 2 or table.size != 16 or size < 1:
        raise ValueError(f"{packed.size} bytes for {rows} × {columns} in 4 bits")
    if maxima.size != -(-rows * columns // size):
        raise ValueError(f"{maxima.size} maxima for {rows} × {columns} in blocks of {size}")

    def read(start: int, stop: int) -> Values:
        some = packed[start * columns // 2 : stop * columns // 2]
        values = table[np.stack([some >> 4, some & 0x0F], axis=-1).reshape(-1)]
        values = values * maxima[np.arange(start * columns, stop * columns) // size]
        return values.reshape(stop - start, columns)

    return Dequantized(f"bitsandbytes {str(told.get('quant_type'))[:8]}", (rows, columns), read)


def _maxima(of: Mapping[str, StoredTensor], told: Mapping[str, object]) -> Values:
    """The largest value of each block, float32."""
    stored = of["weight.absmax"]
    if stored.dtype != "U8":
        plain: Values = stored.tensor().reshape(-1)
        return plain
    table, scales = of["weight.nested_quant_map"].tensor(), of["weight.nested_absmax"].tensor().reshape(-1)
    codes = array(stored).reshape(-1)
    size, offset = int(str(told["nested_blocksize"])), float(str(told["nested_offset"]))
    if table.size != 256 or size < 1 or not math.isfinite(offset) or scales.size != -(-codes.size // size):
        raise ValueError("nested maxima that do not fit")
    nested: Values = table[codes] * scales[np.arange(codes.size) // size] + np.float32(offset)
    return nested
