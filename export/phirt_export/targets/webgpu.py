"""Any GPU that a browser can use, or onnxruntime by Vulkan, Direct3D 12 or Metal: fused operators, float16.

A page cannot open weights that lie in another file and belong to a branch: all are the main graph's.
"""

from __future__ import annotations

from phirt_export.targets.passes import key_masks, media_rows, plain_products
from phirt_export.targets.profile import TargetProfile

PROFILE = TargetProfile(
    "GPUs by WebGPU, in a browser or natively: fused operators in float16",
    providers=("WebGpuExecutionProvider",),
    io_dtype="float16",
    passes=(plain_products.RULES, media_rows.RULES, key_masks.RULES),
)
