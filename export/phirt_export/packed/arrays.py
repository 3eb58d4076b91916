"""Integers of a safetensors file: words in which codes are packed, as arrays over the file.

Knows element types and the order of codes in a word. Knows nothing of what they mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.bundle.tensor_file import StoredTensor, Values

Codes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

_TYPES = {
    "I32": "<u4", "U32": "<u4", "I64": "<i8", "U8": "u1", "I8": "u1", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "F16": "<f2", "F32": "<f4",
}  # fmt: skip


def array(tensor: StoredTensor) -> Array:
    """The tensor as it is stored, words and bytes without a sign. Raises ValueError for other types."""
    if tensor.dtype not in _TYPES:
        raise ValueError(f"a tensor of type {tensor.dtype[:20]}")
    element = np.dtype(_TYPES[tensor.dtype])
    if math.prod(tensor.shape) * element.itemsize != tensor.stop - tensor.start:
        raise ValueError(f"{tensor.stop - tensor.start} bytes for {list(tensor.shape)} of {tensor.dtype}")
    return np.frombuffer(tensor.data, element, math.prod(tensor.shape), tensor.start).reshape(tensor.shape)


def floats(tensor: StoredTensor) -> npt.NDArray[np.floating]:
    """Scales in float16 or, of every other type, in float32."""
    if tensor.dtype == "F16":
        return array(tensor)
    values: Values = tensor.tensor()
    return values


def unpacked(words: Array, bits: int) -> Codes:
    """Codes [..., words * 32 / bits] of words [..., words], the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    return codes.astype(np.uint8).reshape(*words.shape[:-1], -1)
