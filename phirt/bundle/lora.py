"""A LoRA adapter as a decoder graph takes it: names and shapes of the inputs, and the matrices for them.

A bundle's graph LORA_DECODER is its decoder with inputs for one adapter of the user's, over the same weights.
Knows the fused projections of a layer and how an adapter is told from another. Knows nothing of files: `peft`
reads them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

DECODER = "decoder"
LORA_DECODER = "decoder_lora"
ACTIVE_INPUT = "lora.active"

Matrix = npt.NDArray[np.float32]


class DecoderSizes(Protocol):
    """The sizes that decide a projection's shape."""

    @property
    def num_layers(self) -> int:
        """Layers."""

    @property
    def num_heads(self) -> int:
        """Query heads."""

    @property
    def num_kv_heads(self) -> int:
        """Key heads, and value heads."""

    @property
    def head_dim(self) -> int:
        """Elements of a head."""

    @property
    def hidden_size(self) -> int:
        """Elements of a hidden state."""

    @property
    def intermediate_size(self) -> int:
        """Elements between gate and down projection."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """One linear of a layer in the fused layout: `module` is its name below the layer, `parts` are the rows
    of its outputs by the name that each has where it is stored separately.
    """

    module: str
    inputs: int
    parts: Mapping[str, int]

    @property
    def name(self) -> str:
        """The last part of the module's name."""
        return self.module.split(".")[-1]

    @property
    def outputs(self) -> int:
        """All rows."""
        return sum(self.parts.values())


def projections(sizes: DecoderSizes) -> tuple[Projection, ...]:
    """The projections of every layer, in the order of the graph."""
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    return (
        Projection("self_attn.qkv_proj", hidden, {"q_proj": query, "k_proj": key, "v_proj": key}),
        Projection("self_attn.o_proj", query, {"o_proj": hidden}),
        Projection("mlp.gate_up_proj", hidden, {"gate_proj": inner, "up_proj": inner}),
        Projection("mlp.down_proj", inner, {"down_proj": hidden}),
    )


def input_names(layer: int, projection: Projection) -> tuple[str, str]:
    """The graph inputs for A [inputs, rank] and B [rank, outputs] of a projection."""
    name = f"lora.{layer}.{projection.name}"
    return f"{name}.A", f"{name}.B"


@dataclasses.dataclass(frozen=True)
class Branch:
    """What is added to a projection of x: (x `a`) `b`, with `a` [inputs, rank] and `b` [rank, outputs], the
    scale folded into `b`.
    """

    a: Matrix
    b: Matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """An adapter's branches by (layer, name of the projection); there is none where it changes nothing."""

    branches: Mapping[tuple[int, str], Branch]

    def matrices(self, sizes: DecoderSizes) -> Iterator[tuple[str, Matrix]]:
        """Every input of the graph with its matrix, of rank 0 where there is no branch."""
        for layer in range(sizes.num_layers):
            for projection in projections(sizes):
                branch = self.branches.get((layer, projection.name)) or _nothing(projection)
                yield from zip(input_names(layer, projection), (branch.a, branch.b), strict=True)

    def digest(self) -> str:
        """Hex sha256 of what the adapter computes: equal for equal matrices, wherever they came from."""
        content = hashlib.sha256()
        for (layer, name), branch in sorted(self.branches.items()):
            content.update(f"{layer} {name} {branch.a.shape} {branch.b.shape}\n".encode())
            for matrix in (branch.a, branch.b):
                content.update(np.ascontiguousarray(matrix, "<f4").data)
        return content.hexdigest()


NO_LORA = Lora({})


def _nothing(projection: Projection) -> Branch:
    return Branch(np.zeros((projection.inputs, 0), np.float32), np.zeros((0, projection.outputs), np.float32))
