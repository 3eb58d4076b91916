"""GPUs by WebGPU that have no float16 in shaders, which is an optional feature: as `webgpu`, in float32."""

from __future__ import annotations

import dataclasses

from phirt_export.targets import webgpu

PROFILE = dataclasses.replace(
    webgpu.PROFILE,
    description="GPUs by WebGPU without float16 in shaders: fused operators in float32",
    io_dtype="float32",
)
