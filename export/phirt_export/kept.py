"""Quantized blocks that a checkpoint holds, as a format that a bundle's matrices can have.

Knows how matrices that are published in parts share one format, in which no code is rounded. Knows nothing of
containers beyond what `KeptPart` asks for.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from phirt_export.graphs.weight_format import KEPT, WeightFormat
from phirt_quant.blockwise import BlockQuantized

_FLOAT_ACTIVATIONS_BITS = 4
# Bits of an element: more than those of Q4_1 (5.0) are finer than 4-bit codes, those of floats begin at 16.
_FINE_BITS, _PLAIN_BITS = 5.0, 16
_TABLE = "model.embed_tokens.weight"


class KeptForm(Protocol):
    """How codes are kept."""

    @property
    def bits(self) -> int:
        """4 or 8."""

    @property
    def block_size(self) -> int:
        """Elements that share a scale."""

    @property
    def has_minimums(self) -> bool:
        """Whether a value is code * scale + minimum."""

    @property
    def scale_type(self) -> str:
        """float16 or float32."""


@runtime_checkable
class KeptPart(Protocol):
    """A published matrix whose blocks can be kept; `kept_type` is None where they cannot."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and elements of each."""

    @property
    def kind(self) -> str:
        """The name of what is stored."""

    @property
    def bits(self) -> float:
        """Bits that an element takes."""

    @property
    def kept_type(self) -> KeptForm | None:
        """How the blocks are kept."""

    def kept_rows(self, start: int, stop: int, bits: int, has_minimums: bool, dtype: str) -> BlockQuantized:
        """The blocks of some rows, widened to a format that holds them."""


def kept_format(parts: Sequence[object]) -> WeightFormat | None:
    """The format that holds the blocks of all parts, row under row, as they are; None where there is none."""
    types = [part.kept_type if isinstance(part, KeptPart) else None for part in parts]
    known = [kept for kept in types if kept is not None]
    if len(known) < len(types) or len({kept.block_size for kept in known}) != 1:
        return None
    wide = any(kept.scale_type == "float32" for kept in known)
    bits = max(kept.bits for kept in known)
    return WeightFormat(
        bits,
        known[0].block_size,
        KEPT,
        "float32" if wide else "float16",
        any(kept.has_minimums for kept in known),
        # Who keeps codes wants what they stand for. With inputs rounded once, SmolLM2's Q4_1 file is 0.0037
        # nats from it, and decodes twice as fast.
        "float32" if bits == _FLOAT_ACTIVATIONS_BITS else "int8_twice",
    )


def finer_format(parts: Sequence[object]) -> WeightFormat | None:
    """The format of a matrix that cannot keep its blocks, though a part of it is quantized in so many bits
    that 4 would spoil it: 8 bits. None for what is not quantized, or in fewer bits.
    """
    bits = [part.bits for part in parts if isinstance(part, KeptPart)]
    if not bits or not _FINE_BITS < max(bits) < _PLAIN_BITS:
        return None
    return WeightFormat(8, 32, activations="int8_twice")


def holds_quantized(parts: Sequence[object]) -> bool:
    """Whether a part is quantized already."""
    return any(isinstance(part, KeptPart) and part.bits < _PLAIN_BITS for part in parts)


def kept_kinds(parts: Sequence[object]) -> tuple[str, ...]:
    """Names of the types that the parts are stored in, where these are quantized or can be."""
    return tuple(sorted({part.kind for part in parts if isinstance(part, KeptPart)}))


def kept_rows(parts: Sequence[Any], form: WeightFormat, start: int, stop: int) -> BlockQuantized:
    """Rows start..stop-1 of the parts, row under row, in the format that `kept_format` gave."""
    read: list[BlockQuantized] = []
    first = 0
    for part in cast(Sequence[KeptPart], parts):
        last = first + part.shape[0]
        if first < stop and start < last:
            rows = (max(start, first) - first, min(stop, last) - first)
            read.append(part.kept_rows(*rows, form.bits, form.has_minimums, form.scale_type))
        first = last
    if len(read) == 1:
        return read[0]
    minimums = [blocks.minimums for blocks in read if blocks.minimums is not None]
    return BlockQuantized(
        np.concatenate([blocks.codes for blocks in read]),
        np.concatenate([blocks.scales for blocks in read]),
        read[0].columns,
        form.bits,
        form.block_size,
        np.concatenate(minimums) if minimums else None,
    )


class KeptCheckpoint(Protocol):
    """What is told about a checkpoint here."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of all tensors."""

    @property
    def is_quantized(self) -> bool:
        """Whether any of them is quantized already."""

    def kinds(self, name: str) -> tuple[str, ...]:
        """What a tensor is stored as, where that can be quantized blocks."""


def kept_entry(checkpoint: KeptCheckpoint, own: Mapping[str, WeightFormat]) -> dict[str, Any]:
    """What the manifest says about a checkpoint that is quantized already: how many matrices keep their
    blocks and how many do not, by what they were. `own` are formats that come from the checkpoint.
    """
    if not own:
        return {}
    formats = collections.Counter(f"{form.bits} bits, blocks of {form.block_size}" for form in own.values())
    counts, anew = _counts(checkpoint, own)
    entry: dict[str, Any] = {"kept": counts, "matrices": dict(sorted(formats.items()))}
    if table := own.get(_TABLE):
        entry["embedding_bits"] = table.bits
    if anew:
        return entry | {"quantized_by_phirt": anew}
    base = max(own, key=lambda name: (".layers." in name, own[name].bits))
    return entry | {"method": KEPT, "bits": own[base].bits, "block_size": own[base].block_size}


def kept_remark(checkpoint: KeptCheckpoint, own: Mapping[str, WeightFormat] | None) -> str:
    """One line about a checkpoint that is quantized already; nothing about others. None for `own`: the bundle
    is not quantized.
    """
    if not checkpoint.is_quantized:
        return ""
    if own is None:
        return "the checkpoint's quantized blocks are stored as the float32 that they stand for"
    counts, anew = _counts(checkpoint, own)
    lines = [
        f"{what}: {', '.join(f'{count} of {kind}' for kind, count in of.items())}"
        for what, of in (("matrices kept bit for bit", counts), ("quantized by phirt", anew))
        if of
    ]
    return "; ".join(lines)


def _counts(
    checkpoint: KeptCheckpoint, own: Mapping[str, WeightFormat]
) -> tuple[dict[str, int], dict[str, int]]:
    """How many matrices are kept, and how many are not, by what they are stored as."""
    kept: collections.Counter[str] = collections.Counter()
    anew: collections.Counter[str] = collections.Counter()
    for name, shape in checkpoint.shapes.items():
        if len(shape) != 2 or not (kinds := " and ".join(checkpoint.kinds(name))):
            continue
        form = own.get(name)
        if form is not None and form.method == KEPT:
            kept[kinds] += 1
        else:
            anew[kinds if form is None else f"{kinds} in {form.bits} bits"] += 1
    return dict(sorted(kept.items())), dict(sorted(anew.items()))
