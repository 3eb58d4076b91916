"""Pieces that the image and the speech encoder share: biased linears, layer norms, attention, the two-layer
projector.

Knows nothing of either tower's structure.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat

# Added to the scores of excluded keys. Finite, so that a row without any key still has a defined softmax.
_EXCLUDED = -1e9
_LARGEST_CODE = 127


class EncoderParts:
    """Builds biased layers under one prefix of the checkpoint, all in one weight format."""

    def __init__(self, store: WeightStore, form: WeightFormat, prefix: str) -> None:
        self.store, self.form, self.prefix = store, form, prefix
        self.g = store.g

    def linear(self, x: ir.Value, layer: str, name: str, factor: float = 1.0) -> ir.Value:
        """`factor` times the linear layer: x [..., K] -> [..., N]."""
        tensor = f"{self.prefix}.{layer}"
        return self.store.linear(x, f"{tensor}.weight", self.form, name, bias=f"{tensor}.bias", factor=factor)

    def filters(self, layer: str, *, coded: bool) -> ir.Value:
        """A convolution's filters. Coded, where linears are quantized, they are 8-bit codes with a scale a
        filter, which the runtime multiplies out once, when it opens the graph.
        """
        g, weight = self.g, self.store.source.tensor(f"{self.prefix}.{layer}.weight")
        if not coded or not self.form.is_quantized:
            return g.constant(weight, f"{layer}.weight")
        largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        scales = np.maximum(largest, np.float32(1e-12)) / np.float32(_LARGEST_CODE)
        scales = scales.reshape(-1, *(1,) * (weight.ndim - 1)).astype(np.float32)
        codes = g.constant(np.rint(weight / scales).astype(np.int8), f"{layer}.codes")
        return g.Mul(g.Cast(codes, to=int(ir.DataType.FLOAT)), g.constant(scales, f"{layer}.scales"))

    def layer_norm(self, x: ir.Value, layer: str, epsilon: float, name: str) -> ir.Value:
        """Normalises the last axis."""
        weight = self.store.vector(f"{self.prefix}.{layer}.weight", f"{name}.weight")
        bias = self.store.vector(f"{self.prefix}.{layer}.bias", f"{name}.bias")
        return self.g.LayerNormalization(x, weight, bias, name=name, axis=-1, epsilon=epsilon)

    def attention(
        self,
        qkv: tuple[ir.Value, ir.Value, ir.Value],
        num_heads: int,
        name: str,
        keys: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        """softmax(q·k / sqrt(d) + bias)·v over each sequence of a batch.

        Args:
            qkv: three values [N, S, width].
            keys: int32 [N, S], 0 where a key is excluded.
            bias: float32 [1, num_heads, S, S].
        """
        return self.g.MultiHeadAttention(
            *qkv, None, keys, bias, name=name, num_heads=num_heads, mask_filter_value=_EXCLUDED
        )

    def projector(self, x: ir.Value, layers: str, name: str) -> ir.Value:
        """Linear, exact (erf) GELU, linear: layers 0 and 2 of a torch Sequential."""
        hidden = self.g.Gelu(self.linear(x, f"{layers}.0", f"{name}.0"), name=f"{name}.gelu")
        return self.linear(hidden, f"{layers}.2", f"{name}.2")
