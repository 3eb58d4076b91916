"""LoRA adapters as onnxruntime takes them: values on the memory of their matrices, made once for all runs.

Knows which inputs a decoder graph has for an adapter. Knows nothing of files, chats or caches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from phirt.bundle.lora import ACTIVE_INPUT, NO_LORA, DecoderSizes, Lora
from phirt.bundle.manifest import GraphSpec
from phirt.runtime.tensor import ort_value


class LoraInputs:
    """What the adapters of a model feed to its decoder graph, and what stands there where none is active.

    `loras` are the adapters by digest. A graph that takes none has no inputs for them either.
    """

    def __init__(self, spec: GraphSpec, sizes: DecoderSizes, loras: Mapping[str, Lora] | None = None) -> None:
        takes = any(tensor.name == ACTIVE_INPUT for tensor in spec.inputs)
        halves = {tensor.name for tensor in spec.inputs if tensor.dtype == "float16"}
        assert takes or not loras, f"{spec.file} takes no adapters"
        self._values: dict[str | None, Sequence[tuple[str, Any]]] = {None: ()}
        if takes:
            self._values[None] = _values(NO_LORA, sizes, halves)
            for digest, lora in (loras or {}).items():
                self._values[digest] = _values(lora, sizes, halves)

    def values(self, digest: str | None) -> Sequence[tuple[str, Any]]:
        """(graph input, OrtValue) for the adapter with this digest; None for no adapter."""
        return self._values[digest]

    def __contains__(self, digest: object) -> bool:
        return digest in self._values


def _values(lora: Lora, sizes: DecoderSizes, halves: Collection[str]) -> Sequence[tuple[str, Any]]:
    """Inputs and their values; those named in `halves` in float16."""
    values = []
    for name, matrix in lora.matrices(sizes):
        kind = np.float16 if name in halves else np.float32
        values.append((name, ort_value(np.ascontiguousarray(matrix, kind))))
    return [(ACTIVE_INPUT, ort_value(np.array([bool(lora.branches)]))), *values]
