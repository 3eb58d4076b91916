"""A wheel that was just made: its library loads, names an instruction set, and onnxruntime takes it.

Knows the package alone; tests/kernels of the repository looks at what is computed.
"""

from __future__ import annotations

import ctypes

import onnxruntime
import phirt_kernels

path = str(phirt_kernels.library_path())
name = ctypes.CDLL(path).phirt_kernels_name
name.restype = ctypes.c_char_p
onnxruntime.SessionOptions().register_custom_ops_library(path)
print(name().decode())
