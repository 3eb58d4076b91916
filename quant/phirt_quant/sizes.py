"""What a bundle's weights take: bits a weight, scales and padding included, by part and in all.

Knows what a manifest says about sizes. Reads no weight, and takes what is not well-formed for unknown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from phirt.bundle.manifest import Manifest

# What every token of every route is multiplied by.
_DECODER = ("decoder", "token table")
_MOST = 1 << 50


@dataclasses.dataclass(frozen=True)
class PartSize:
    """Weights of one part and the bytes that they are stored in."""

    weights: int
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        """All stored bits over all weights."""
        return 8 * self.bytes / self.weights


@dataclasses.dataclass(frozen=True)
class BundleSizes:
    """Sizes of one bundle.

    Attributes:
        bytes: all files.
        whole: all files over all weights of the model; None where the manifest does not count the weights, as
            in bundles of earlier versions.
        decoder: projections and token table, without adapters; None likewise.
        parts: matrices by part: decoder, token table, adapters, encoders.
    """

    bytes: int
    whole: PartSize | None
    decoder: PartSize | None
    parts: Mapping[str, PartSize]

    def as_object(self) -> dict[str, Any]:
        """The figures as plain values."""

        def described(size: PartSize | None) -> dict[str, Any] | None:
            if size is None:
                return None
            return {**dataclasses.asdict(size), "bits_per_weight": size.bits_per_weight}

        return {
            "bytes": self.bytes,
            "bits_per_weight": None if self.whole is None else self.whole.bits_per_weight,
            "decoder": described(self.decoder),
            "parts": {part: described(size) for part, size in self.parts.items()},
        }


def bundle_sizes(manifest: Manifest) -> BundleSizes:
    """The sizes that a manifest tells."""
    total = sum(entry.size for entry in manifest.files.values())
    listed = manifest.quantization.get("parts")
    parts = {
        str(part): PartSize(entry["weights"], entry["bytes"])
        for part, entry in (listed.items() if isinstance(listed, dict) else ())
        if isinstance(entry, dict) and _is_count(entry.get("weights")) and _is_count(entry.get("bytes"))
    }
    weights = manifest.quantization.get("weights")
    base = [parts[part] for part in _DECODER if part in parts]
    return BundleSizes(
        bytes=total,
        whole=PartSize(weights, total) if isinstance(weights, int) and _is_count(weights) else None,
        decoder=PartSize(sum(p.weights for p in base), sum(p.bytes for p in base)) if base else None,
        parts=parts,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < _MOST
