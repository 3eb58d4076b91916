"""A library of operators for onnxruntime on the CPU: products of block-quantized weights, attention.
`phirt` uses it by itself where it is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["library_path"]

_NAMES = {"win32": "phirt_kernels.dll", "darwin": "libphirt_kernels.dylib"}


def library_path() -> Path:
    """The library that `onnxruntime.SessionOptions.register_custom_ops_library` takes."""
    return Path(__file__).resolve().parent / _NAMES.get(sys.platform, "libphirt_kernels.so")
