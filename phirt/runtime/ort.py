"""onnxruntime, imported with its telemetry off. Everything else takes `ort` from here."""

from __future__ import annotations

import functools
import os
import threading

# onnxruntime reads this while it is imported; whoever has already decided keeps their choice.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

ort.disable_telemetry_events()

__all__ = ["load_cuda_libraries", "ort"]

_LOADING = threading.Lock()


def load_cuda_libraries() -> None:
    """Loads NVIDIA's libraries out of Python packages, where the system's loader does not look for them. What
    is missing there may be the system's own, so only the session that needs it can say that it is not.
    """
    with _LOADING:
        _load_once()


@functools.cache
def _load_once() -> None:
    # onnxruntime prints what it has not found; a `print` of the module's own keeps it from stdout, which
    # belongs to the program.
    vars(ort)["print"] = _say_nothing
    try:
        ort.preload_dlls(msvc=False)
    finally:
        del vars(ort)["print"]


def _say_nothing(*_: object, **__: object) -> None:
    pass
