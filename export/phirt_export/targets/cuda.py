"""NVIDIA's GPUs by onnxruntime's CUDA provider: fused operators, float16, keys and values in the GPU's
memory.

Its GroupQueryAttention takes float16 and bfloat16 alone.
"""

from __future__ import annotations

from phirt_export.targets.passes import media_rows, plain_products
from phirt_export.targets.profile import TargetProfile

PROFILE = TargetProfile(
    "NVIDIA GPUs: fused operators in float16",
    providers=("CUDAExecutionProvider",),
    io_dtype="float16",
    passes=(plain_products.RULES, media_rows.RULES),
)
