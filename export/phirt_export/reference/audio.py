"""The audio tower of the reference model: log-mel frames in, one row per 80 ms out.

Knows what follows feature extraction: subsampling, conformer blocks, window folding, the two projectors, as
`speech_conformer_encoder.py` beside Phi-4-multimodal's weights has them. Knows nothing of recordings or
sample rates. Masked frames are excluded with -inf, as in that original.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt_export.reference.config import AudioConfig


class Subsampling(nn.Module):
    """Three stride-2 convolutions (the later two depthwise-separable), then a linear over channels and
    bins.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.conv = nn.Sequential(
            nn.Conv2d(1, d, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(d, d, 3, stride=2, padding=1, groups=d),
            nn.Conv2d(d, d, 1),
            nn.ReLU(),
            nn.Conv2d(d, d, 3, stride=2, padding=1, groups=d),
            nn.Conv2d(d, d, 1),
            nn.ReLU(),
        )
        bins = config.num_mels
        for _ in range(3):
            bins = (bins + 1) // 2
        self.out = nn.Linear(d * bins, d)

    def forward(self, x: Tensor) -> Tensor:
        """[B, frames, mels] -> [B, ceil(frames / 8), hidden]."""
        y = self.conv(x[:, None])
        rows: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return rows


class GatedLinear(nn.Module):
    """first half · silu(second half) of a linear: the opposite order of the decoder's feed-forward."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.linear(x)
        value, gate = both.chunk(2, dim=-1)
        return value * F.silu(gate)


class ConformerFeedForward(nn.Module):
    """LayerNorm, gated linear, linear."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        # Indices 0 and 2 as in the original, where 1 and 3 are dropout.
        self.net = nn.Sequential(
            GatedLinear(config.hidden_size, config.intermediate_size),
            nn.Identity(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(self.layer_norm(x))
        return y


class RelativeAttention(nn.Module):
    """Multi-head self-attention with an additive bias per head and distance."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.num_heads = config.num_heads
        self.linear_q = nn.Linear(d, d)
        self.linear_k = nn.Linear(d, d)
        self.linear_v = nn.Linear(d, d)
        self.linear_out = nn.Linear(d, d)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            projection(x).view(batch, length, self.num_heads, -1).transpose(1, 2)
            for projection in (self.linear_q, self.linear_k, self.linear_v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        attended: Tensor = self.linear_out(y.transpose(1, 2).reshape(batch, length, width))
        return attended


class PointwiseGate(nn.Module):
    """(a + b1) · silu(g + b2) over the two halves of a pointwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ext_pw_conv_1d = nn.Conv1d(channels, 2 * channels, 1)
        self.b1 = nn.Parameter(torch.zeros(1, channels, 1))
        self.b2 = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.ext_pw_conv_1d(x)
        value, gate = both.chunk(2, dim=1)
        return (value + self.b1) * F.silu(gate + self.b2)


class DepthwiseSeparable(nn.Module):
    """Causal depthwise convolution (padded on both sides, the tail dropped), then pointwise."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.dw_conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size - 1, groups=channels)
        self.pw_conv = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pw_conv(self.dw_conv(x)[:, :, : x.shape[2]])
        return y


class ConvModule(nn.Module):
    """LayerNorm, gate, causal depthwise-separable convolution, silu, pointwise; no batch norm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.layer_norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.glu = PointwiseGate(d)
        self.dw_sep_conv_1d = DepthwiseSeparable(d, config.kernel_size)
        self.ext_pw_conv_1d = nn.Conv1d(d, d, 1)

    def forward(self, x: Tensor) -> Tensor:
        gated = self.glu(self.layer_norm(x).transpose(1, 2))
        y: Tensor = self.ext_pw_conv_1d(F.silu(self.dw_sep_conv_1d(gated)))
        return y.transpose(1, 2)


class ConformerLayer(nn.Module):
    """x + half a feed-forward, attention, convolution, half a feed-forward, LayerNorm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.feed_forward_in = ConformerFeedForward(config)
        self.layer_norm_att = nn.LayerNorm(d, eps=config.norm_eps)
        self.self_attn = RelativeAttention(config)
        self.conv = ConvModule(config)
        self.feed_forward_out = ConformerFeedForward(config)
        self.layer_norm = nn.LayerNorm(d, eps=config.norm_eps)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.self_attn(self.layer_norm_att(x), bias)
        x = x + self.conv(x)
        x = x + 0.5 * self.feed_forward_out(x)
        y: Tensor = self.layer_norm(x)
        return y


class RelativeBias(nn.Module):
    """One bias per head and clamped distance: key index minus query index."""

    def __init__(self, max_distance: int, num_heads: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.bias_values = nn.Embedding(2 * max_distance, num_heads)

    def forward(self, length: int) -> Tensor:
        """[1, heads, length, length]."""
        side = torch.arange(length, device=self.bias_values.weight.device)
        distance = (side[None, :] - side[:, None]).clamp(-self.max_distance, self.max_distance - 1)
        bias: Tensor = self.bias_values(distance + self.max_distance)
        return bias.permute(2, 0, 1)[None]


class FeatureNorm(nn.Module):
    """(x - mean) · inverse standard deviation per mel bin, fixed buffers."""

    global_mean: Tensor
    global_invstd: Tensor

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        self.register_buffer("global_mean", torch.zeros(num_mels))
        self.register_buffer("global_invstd", torch.ones(num_mels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.global_mean) * self.global_invstd


class Windows(NamedTuple):
    """A sequence folded into windows: features [B·n, W, hidden] and its key mask [B·n, W] or None."""

    features: Tensor
    mask: Tensor | None


class AudioTower(nn.Module):
    """Conformer encoder over one batch of recordings."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_embedding = FeatureNorm(config.num_mels)
        self.embed = Subsampling(config)
        self.relative_attention_bias_layer = RelativeBias(config.bias_max_distance, config.num_heads)
        self.encoders = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))

    def _fold(self, x: Tensor, mask: Tensor | None) -> Windows:
        """Longer sequences become independent windows; without a mask the zero tail is attended, as in the
        original.
        """
        window = self.config.window_tokens
        _, length, width = x.shape
        if length <= window:
            return Windows(x, mask)
        pad = -length % window
        folded = F.pad(x, (0, 0, 0, pad)).reshape(-1, window, width)
        return Windows(folded, None if mask is None else F.pad(mask, (0, pad)).reshape(-1, window))

    def forward(self, audio_embeds: Tensor, frames: Tensor | None = None) -> Tensor:
        """Features [B, ceil(T / 8), hidden] of log-mel frames [B, T, mels].

        `frames` (int64 [B]) gives the valid frames of each row of a padded batch; later keys are excluded.
        """
        x: Tensor = self.embed(self.encoder_embedding(audio_embeds))
        batch, length, width = x.shape
        mask = None
        if frames is not None:
            tokens = (frames + self.config.subsampling - 1) // self.config.subsampling
            mask = torch.arange(length, device=x.device)[None, :] < tokens[:, None]
        x, mask = self._fold(x, mask)
        bias = self.relative_attention_bias_layer(x.shape[1])
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None, :], float("-inf"))
            # A window lying wholly in padding has no key; its rows are never read, but must stay finite.
            bias = torch.where(mask.any(1)[:, None, None, None], bias, 0.0)
        for layer in self.encoders:
            x = layer(x, bias)
        return x.reshape(batch, -1, width)[:, :length]


class AudioEmbed(nn.Module):
    """Tower and the two projectors; `vision` serves audio beside an image."""

    PROJECTORS = ("speech", "vision")

    def __init__(self, config: AudioConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = AudioTower(config)
        self.audio_projection = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(config.hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
                )
                for name in self.PROJECTORS
            }
        )

    def forward(self, audio_embeds: Tensor, projector: str, frames: Tensor | None = None) -> Tensor:
        """Audio features [B, ceil(T / 8), hidden_size] through the named projector."""
        features: Tensor = self.audio_projection[projector](self.encoder(audio_embeds, frames))
        return features
