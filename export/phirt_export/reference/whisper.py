"""Whisper's encoder as a tower: a log-mel spectrogram in, rows of the decoder's width out.

The encoder is that of OpenAI's Whisper (Radford et al. 2022, arXiv 2212.04356); a recording takes as many
frames as it has, not always thirty seconds. A recogniser behind it spells what it hears (connectionist
temporal classification, Graves et al. 2006) in pieces of words, and each row of the tower holds the pieces as
the decoder embeds them, weighted by their probabilities, beside what a projector makes of the sound. Knows
frames and shapes. Knows nothing of files, text or training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt_export.reference.config import WhisperConfig

EPSILON = 1e-5
MEL_FRAMES = 2  # of an encoder's frame


def rates(width: int) -> Tensor:
    """How fast each of the sines turns, float64 [width / 2]: with periods from 2π to 20000π."""
    half = width // 2
    return torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float64))


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's positions, float32 [length, width]: sines, then cosines."""
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates(width)
    return torch.cat((angles.sin(), angles.cos()), 1).float()


class WhisperLayer(nn.Module):
    """One pre-norm block; queries, keys and values come from one projection."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width, EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, EPSILON)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
        )
        mask = None if keys is None else keys[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, mask)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        change: Tensor = self.down(F.gelu(self.up(self.mlp_norm(x))))
        return x + change


class WhisperEncoder(nn.Module):
    """Log-mel [B, mels, frames] to [B, frames / 2, width]."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.conv1 = nn.Conv1d(config.num_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=MEL_FRAMES, padding=1)
        self.layers = nn.ModuleList(WhisperLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, mels: Tensor, keys: Tensor | None = None) -> Tensor:
        """`keys`, bool [B, frames / 2], is False for frames behind a recording's end."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mels)))).transpose(1, 2)
        x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        for layer in self.layers:
            x = layer(x, keys)
        y: Tensor = self.norm(x)
        return y


class Recogniser(nn.Module):
    """Stacked frames to the features that pieces of words are told by: convolutions along time."""

    KERNEL, LAYERS = 5, 2

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, EPSILON) for _ in range(self.LAYERS))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, self.KERNEL, padding=self.KERNEL // 2) for _ in range(self.LAYERS)
        )
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, stacked: Tensor, inside: Tensor | None = None) -> Tensor:
        """[B, rows, inputs] to [B, rows, width]; `inside` is False behind a recording's end."""
        x = F.gelu(self.inner(stacked))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = norm(x)
            if inside is not None:
                y = y * inside[..., None]
            x = x + F.gelu(convolution(y.transpose(1, 2)).transpose(1, 2))
        z: Tensor = self.norm(x)
        return z


class SoundEmbed(nn.Module):
    """The encoder, the recogniser and the projector.

    `forward` is `project(hear(mels))`; what `hear` gives does not change while encoder and recordings stay.
    """

    def __init__(self, config: WhisperConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        stacked = config.stacked * config.hidden_size
        self.encoder = WhisperEncoder(config)
        self.recogniser = Recogniser(stacked, config.projector_size)
        self.pieces = nn.Linear(config.projector_size, len(config.pieces) + 1)  # the last is the blank
        self.names = nn.Linear(len(config.pieces), hidden_size, bias=False)  # a column a piece
        self.projection = nn.Linear(config.projector_size, hidden_size)

    def hear(self, mels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Log-mel [B, mels, frames] to stacked frames [B, rows, stacked · width]."""
        x = self.encoder(mels, keys)
        stacked = self.config.stacked
        x = F.pad(x, (0, 0, 0, -x.shape[1] % stacked))
        return x.view(len(x), -1, stacked * x.shape[2])

    def recognise(self, stacked: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, rows, projector_size] and the scores of pieces [B, rows, pieces + 1]."""
        features = self.recogniser(stacked, inside)
        return features, self.pieces(features)

    def project(self, stacked: Tensor, inside: Tensor | None = None) -> Tensor:
        """Rows [B, rows, hidden] of stacked frames."""
        features, scores = self.recognise(stacked, inside)
        words = self.names(F.softmax(scores, -1)[..., :-1])
        rows: Tensor = words + self.projection(features)
        return rows

    def forward(self, mels: Tensor) -> Tensor:
        """Log-mel [B, mels, frames] to rows [B, rows, hidden]."""
        return self.project(self.hear(mels))
