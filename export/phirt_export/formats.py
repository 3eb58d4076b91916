"""Which weight format each part of a bundle gets, from what an export is asked for.

Knows parts, bits and methods. Knows nothing of how a weight is quantized or stored.
"""

from __future__ import annotations

import dataclasses

from phirt_export.graphs.linear import FLOAT_BITS, GPTQ, WeightFormat
from phirt_export.reference import ModelConfig

# Wide models lose little with long blocks and decode 1.6 times faster; narrow ones need the finer scales.
_WIDE = 1024
_WIDE_BLOCK, _NARROW_BLOCK = 128, 32
# With 8 bits for adapters and encoders, they and the rounding of activations together cost the nano model
# 0.0002 nats at most: nothing is left for calibration to win.
_ADAPTER_CALIBRATED_BITS = 4


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
    methods = (method, method, method if adapter_bits == _ADAPTER_CALIBRATED_BITS else plain, plain)
    return BundleFormats(*(WeightFormat(b, block_size, m) for b, m in zip(parts, methods, strict=True)))


def default_block_size(config: ModelConfig) -> int:
    """Block size that suits the decoder's width."""
    return _WIDE_BLOCK if config.decoder.hidden_size >= _WIDE else _NARROW_BLOCK
