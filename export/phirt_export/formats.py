"""Which weight format each part of a bundle gets, from what an export is asked for.

Knows parts, bits and methods, and what a manifest says about them. Knows nothing of how a weight is quantized
or stored.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from phirt_export.checkpoint import expected_shapes
from phirt_export.graphs.weight_format import FLOAT_BITS, GPTQ, Chosen, WeightFormat
from phirt_export.reference import ModelConfig
from phirt_quant.blockwise import ScaleType
from phirt_quant.weight_error import StoredSize

# Wide models lose little with long blocks and decode 1.6 times faster; narrow ones need the finer scales.
_WIDE = 1024
_WIDE_BLOCK, _NARROW_BLOCK = 128, 32
# Layers of more weights take too long to calibrate unasked: SmolLM2's 106 million need 3 minutes on two
# cores, 805 million of width 3072 some 17, by their processor time.
_MOST_CALIBRATED_WEIGHTS = 1_000_000_000
# With 8 bits for adapters and encoders, they and the rounding of activations together cost the nano model
# 0.0002 nats at most: nothing is left for calibration to win.
_CALIBRATED_BITS = 4


@dataclasses.dataclass(frozen=True)
class BundleFormats:
    """Weight formats of a bundle's parts: base projections, embedding with head, LoRA matrices, encoders."""

    base: WeightFormat
    embedding: WeightFormat
    adapter: WeightFormat
    encoder: WeightFormat

    @property
    def parts(self) -> tuple[WeightFormat, ...]:
        """All four."""
        return self.base, self.embedding, self.adapter, self.encoder

    def manifest_entry(self) -> dict[str, int | str]:
        """What the manifest says about quantization."""
        return {
            "bits": self.base.bits,
            "block_size": self.base.block_size,
            "embedding_bits": self.embedding.bits,
            "adapter_bits": self.adapter.bits,
            "encoder_bits": self.encoder.bits,
            "method": self.base.method,
        }


def choose_formats(
    bits: int, block_size: int, embedding_bits: int | None, adapter_bits: int, encoder_bits: int, method: str
) -> BundleFormats:
    """The formats; 32 base bits mean an unquantized bundle, so the other parts follow.

    `gptq` is for what loses by quantization: encoders, and LoRA matrices of 8 bits, take searched scales.
    """
    parts = (bits, bits if embedding_bits is None else embedding_bits, adapter_bits, encoder_bits)
    if bits == FLOAT_BITS:
        parts = (bits,) * 4
    plain = "mse" if method == GPTQ else method
    methods = (method, method, method if adapter_bits == _CALIBRATED_BITS else plain, plain)
    # LoRA matrices times their factor may be too small for scales in float16, and are few.
    scale_types: tuple[ScaleType, ...] = ("float16", "float16", "float32", "float16")
    of_parts = zip(parts, methods, scale_types, strict=True)
    return BundleFormats(*(WeightFormat(b, block_size, m, scale_type) for b, m, scale_type in of_parts))


def default_method(config: ModelConfig, bits: int) -> str:
    """The method that suits a decoder's size."""
    shapes = expected_shapes(config)
    weights = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model.layers."))
    return GPTQ if bits == _CALIBRATED_BITS and weights <= _MOST_CALIBRATED_WEIGHTS else "mse"


def default_block_size(config: ModelConfig) -> int:
    """Block size that suits the decoder's width."""
    return _WIDE_BLOCK if config.decoder.hidden_size >= _WIDE else _NARROW_BLOCK


def choice_entry(bits_per_weight: float | None, chosen: Chosen) -> dict[str, Any]:
    """What the manifest says where each matrix has its own format: how many have which, and the size that was
    asked for.
    """
    if not chosen:
        return {}
    forms = [rows.form for of in chosen.values() for rows in of]
    counts = collections.Counter(f"{form.bits} bits, blocks of {form.block_size}" for form in forms)
    asked = {} if bits_per_weight is None else {"bits_per_weight": bits_per_weight}
    return asked | {"matrices": dict(sorted(counts.items()))}


def size_entry(sizes: Mapping[str, StoredSize], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the manifest says about sizes: all weights of the model, and those of stored matrices by part."""
    total = sum(math.prod(shape) for shape in shapes.values())
    parts = {part: {"weights": size.weights, "bytes": size.bytes} for part, size in sizes.items()}
    return {"weights": total, "parts": parts}
