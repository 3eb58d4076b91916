"""What quantization costs weights: the size of the difference relative to the size of the weights, and what
it leaves of their bytes.

Knows running sums, so nothing is kept per element. Knows nothing of formats beyond the number of bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


class RelativeError:
    """Sums over one matrix, slab by slab."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, original: np.ndarray, stored: np.ndarray) -> None:
        """Take in a slab of the matrix and what it becomes when it is read back, float32 of equal shapes."""
        difference = (stored - original).reshape(-1)
        self._signal += float(np.dot(original.reshape(-1), original.reshape(-1)))
        self._noise += float(np.dot(difference, difference))

    def sums(self) -> tuple[float, float]:
        """(sum of W², sum of (Ŵ - W)²)."""
        return self._signal, self._noise


@dataclasses.dataclass(frozen=True)
class WeightError:
    """One quantized tensor, or its rows of so many bits: the bits, the sum of its squares, and that of what
    quantization adds to it.

    It is the distance to the checkpoint's weights: `gptq` moves some on purpose, for outputs that are nearer.
    """

    tensor: str
    bits: int
    signal: float
    noise: float

    @property
    def relative(self) -> float:
        """Root mean square of Ŵ - W over that of W; 0 for a tensor of zeros."""
        return math.sqrt(self.noise / self.signal) if self.signal else 0.0


@dataclasses.dataclass(frozen=True)
class PartError:
    """All quantized tensors of one part, at least one."""

    part: str
    tensors: tuple[WeightError, ...]

    @property
    def bits(self) -> tuple[int, ...]:
        """The numbers of bits that occur."""
        return tuple(sorted({error.bits for error in self.tensors}))

    @property
    def relative(self) -> float:
        """The relative error over all of the weights."""
        signal, noise = (sum(getattr(e, name) for e in self.tensors) for name in ("signal", "noise"))
        return WeightError(self.part, 0, signal, noise).relative

    @property
    def worst(self) -> WeightError:
        """The tensor whose relative error is largest."""
        return max(self.tensors, key=lambda error: error.relative)

    def as_object(self) -> dict[str, Any]:
        """Plain values, with each tensor."""
        return {
            "part": self.part,
            "relative_error": self.relative,
            "tensors": [
                {"tensor": e.tensor, "bits": e.bits, "relative_error": e.relative} for e in self.tensors
            ],
        }


@dataclasses.dataclass(frozen=True)
class StoredSize:
    """How many weights a stored matrix, or several, has, and in how many bytes with scales and padding."""

    tensor: str
    weights: int
    bytes: int


def part_sizes(graph: str, sizes: Sequence[StoredSize]) -> dict[str, StoredSize]:
    """The sizes of one graph by part, in the parts of `part_errors`."""
    parts: dict[str, StoredSize] = {}
    for size in sizes:
        part = _part(graph, size.tensor)
        so_far = parts.get(part, StoredSize(part, 0, 0))
        parts[part] = StoredSize(part, so_far.weights + size.weights, so_far.bytes + size.bytes)
    return parts


def part_errors(graph: str, errors: Sequence[WeightError]) -> list[PartError]:
    """The parts of one graph: an encoder is one; a decoder has projections, tables and adapters."""
    groups: dict[str, dict[tuple[str, int], WeightError]] = {}
    for error in errors:
        group, key = groups.setdefault(_part(graph, error.tensor), {}), (error.tensor, error.bits)
        so_far = group.get(key, WeightError(*key, 0.0, 0.0))
        group[key] = WeightError(*key, so_far.signal + error.signal, so_far.noise + error.noise)
    return [PartError(part, tuple(group.values())) for part, group in groups.items()]


def _part(graph: str, tensor: str) -> str:
    if graph != "decoder":
        return f"{graph} encoder"
    if ".lora_" in tensor:
        return f"{tensor.split('.')[-2]} adapter"
    return "token table" if tensor in ("model.embed_tokens.weight", "lm_head.weight") else "decoder"
