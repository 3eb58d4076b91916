"""onnxruntime, imported with its telemetry off. Everything else takes `ort` from here."""

from __future__ import annotations

import os

# onnxruntime reads this while it is imported; whoever has already decided keeps their choice.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

ort.disable_telemetry_events()

__all__ = ["ort"]
