"""The decoder of the reference model, in torch: what is compared with the decoder graph, and what is trained.

Knows embeddings in, hidden states out, and the LoRA branches of a route. Knows nothing of images, audio or
text, and keeps no KV cache: a step of the reference is a forward pass over the whole sequence. Module names
follow the Phi-4-multimodal checkpoint (arXiv 2503.01743), so a state dict is a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt_export.reference.config import AdapterConfig, DecoderConfig, RopeConfig
from phirt_export.reference.packed import Documents

WeightTransform = Callable[[Tensor], Tensor]


def rope_tables(rope: RopeConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0..length-1 for a sequence of that total length.

    Returns:
        Two float32 tensors [length, rotary_dim / 2]. The long factors apply to every position once `length`
        exceeds `original_context`; the magnitude factor multiplies both tables in both regimes.
    """
    long = rope.has_long_regime and length > rope.original_context
    factors = torch.tensor(rope.long_factor if long else rope.short_factor, dtype=torch.float64)
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float64) / rope.rotary_dim
    inverse_frequencies = 1.0 / (factors * rope.theta**exponents)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * inverse_frequencies
    magnitude = 1.0 if rope.magnitude is None else rope.magnitude
    if rope.magnitude is None and rope.context > rope.original_context:
        magnitude = math.sqrt(
            1 + math.log(rope.context / rope.original_context) / math.log(rope.original_context)
        )
    return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2·cos.shape[-1] dimensions of x [B, heads, T, head_dim] in half-split pairs; the rest
    pass. The result has the dtype of x.
    """
    half = cos.shape[-1]
    first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*(part.to(x.dtype) for part in turned), rest), dim=-1)


class RoutedLinear(nn.Module):
    """A frozen-able base projection and one LoRA branch per adapter; a route without a branch is the base
    alone.

    `transform` maps the base weight before it is used (quantization-aware training), None in ordinary use.
    """

    def __init__(
        self, in_features: int, out_features: int, adapters: Mapping[str, AdapterConfig], bias: bool = False
    ) -> None:
        super().__init__()
        self.base_layer = nn.Linear(in_features, out_features, bias=bias)
        self.lora_A = nn.ModuleDict(
            {n: nn.Linear(in_features, a.rank, bias=False) for n, a in adapters.items()}
        )
        self.lora_B = nn.ModuleDict(
            {n: nn.Linear(a.rank, out_features, bias=False) for n, a in adapters.items()}
        )
        self.branches = dict(adapters)
        self.transform: WeightTransform | None = None
        for branch in self.lora_B.values():
            assert isinstance(branch, nn.Linear)
            nn.init.zeros_(branch.weight)

    def forward(self, x: Tensor, adapter: str | None) -> Tensor:
        """x [..., in_features] -> [..., out_features] through the base weight plus the adapter's branch, if
        any.
        """
        weight = self.base_layer.weight
        y = F.linear(x, self.transform(weight) if self.transform else weight, self.base_layer.bias)
        if adapter is None:
            return y
        branch = self.branches[adapter]
        if self.training and branch.dropout:
            x = F.dropout(x, branch.dropout)
        change: Tensor = self.lora_B[adapter](self.lora_A[adapter](x))
        return y + change * branch.scale


class Attention(nn.Module):
    """Grouped-query attention with partial rotary embedding; rows of qkv are queries, keys, values,
    head-major.
    """

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.config = config
        biases = config.biases
        self.qkv_proj = RoutedLinear(config.hidden_size, config.qkv_size, adapters, "qkv_proj" in biases)
        attended = config.num_heads * config.head_dim
        self.o_proj = RoutedLinear(attended, config.hidden_size, adapters, "o_proj" in biases)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | Documents | None, adapter: str | None
    ) -> Tensor:
        c = self.config
        batch, length, _ = x.shape
        q, k, v = self.heads(x, adapter)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = c.num_heads // c.num_kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        y = self.attend(q, k, v, mask)
        projected: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1), adapter)
        return projected

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Documents | None) -> Tensor:
        """What queries, keys, values [B, heads, T, head_dim] come to, of that shape; masks as in `Model`."""
        if isinstance(mask, Documents):
            return mask.attend(q, k, v, self.config.sliding_window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    def heads(self, x: Tensor, adapter: str | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, T, head_dim], keys and values [B, kv_heads, T, head_dim], not rotated yet."""
        c = self.config
        batch, length, _ = x.shape
        heads = self.qkv_proj(x, adapter).view(batch, length, -1, c.head_dim).transpose(1, 2)
        q, k, v = heads.split((c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=1)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class FeedForward(nn.Module):
    """down(silu(gate) · up), gate and up fused in one projection, gate first."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        width, inner, biases = config.hidden_size, config.intermediate_size, config.biases
        self.gate_up_proj = RoutedLinear(width, 2 * inner, adapters, "gate_up_proj" in biases)
        self.down_proj = RoutedLinear(inner, width, adapters, "down_proj" in biases)

    def forward(self, x: Tensor, adapter: str | None) -> Tensor:
        gate, up = self.gate_up_proj(x, adapter).chunk(2, dim=-1)
        y: Tensor = self.down_proj(F.silu(gate) * up, adapter)
        return y


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = Attention(config, adapters)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = FeedForward(config, adapters)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | Documents | None, adapter: str | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, adapter)
        change: Tensor = self.mlp(self.post_attention_layernorm(x), adapter)
        return x + change
