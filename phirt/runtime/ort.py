"""onnxruntime, imported with its telemetry off. Everything else takes `ort` from here."""

from __future__ import annotations

import contextlib
import functools
import io
import os

# onnxruntime reads this while it is imported; whoever has already decided keeps their choice.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

ort.disable_telemetry_events()

__all__ = ["load_cuda_libraries", "ort"]


@functools.cache
def load_cuda_libraries() -> None:
    """Loads NVIDIA's libraries out of Python packages, where the system's loader does not look for them. What
    is missing there may be the system's own, so only the session that needs it can say that it is not.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it has not found
        ort.preload_dlls(msvc=False)
