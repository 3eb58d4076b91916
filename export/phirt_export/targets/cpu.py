"""CPUs: onnxruntime's fused operators, dynamic shapes, float32 between nodes. Graphs are built this way."""

from __future__ import annotations

from phirt_export.targets.profile import TargetProfile

PROFILE = TargetProfile("any CPU that onnxruntime runs on")
