"""What contrastive captioning sets beside the vision tower for the time of its stage: a pooler of patches, a
tower for texts, and a tiny decoder that captions (Yu et al., CoCa, arXiv 2205.01917).

Knows tensors. Knows nothing of files, tokens' meaning or losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Queries that attend to something, or causally to themselves."""

    def __init__(self, width: int, num_heads: int, source_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(source_width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, T, width] to the same; `mask` bool [B, S] is False where the source is nothing."""
        keys, values = self.key_value(x if source is None else source).chunk(2, dim=-1)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query(x), keys, values)
        )
        seen = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=source is None)
        attended: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    """A pre-norm block of a text tower, or, with patches to attend to, of a captioning decoder."""

    def __init__(self, width: int, num_heads: int, patch_width: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, num_heads, width)
        if patch_width is not None:
            self.cross_norm = nn.LayerNorm(width)
            self.cross = CrossAttention(width, num_heads, patch_width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, patches: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm(x))
        if patches is not None:
            x = x + self.cross(self.cross_norm(x), patches, mask)
        change: Tensor = self.mlp(self.mlp_norm(x))
        return x + change


class CaptionHeads(nn.Module):
    """Everything beside the tower.

    Args:
        patch_width: of the tower's features.
        width, num_heads, num_layers: of the text tower and of the decoder, which have as many layers.
        vocab_size, length: of captions; one more token stands for the whole of a text.
        scale, bias: what the similarities begin with.
    """

    def __init__(
        self,
        patch_width: int,
        width: int,
        num_heads: int,
        num_layers: int,
        vocab_size: int,
        length: int,
        scale: float,
        bias: float,
    ) -> None:
        super().__init__()
        self.whole = vocab_size
        self.tokens = nn.Embedding(vocab_size + 1, width)
        self.positions = nn.Embedding(length + 1, width)
        self.text = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.text_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(Block(width, num_heads, patch_width) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_norm = nn.LayerNorm(patch_width)
        self.pooler = CrossAttention(width, num_heads, patch_width)
        self.picture_norm = nn.LayerNorm(width)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(bias))

    def initialize(self, generator: torch.Generator) -> None:
        """Matrices normal(0, 0.02), biases zero; norms, scale and bias of similarities as they are."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.02, generator=generator)
                elif name.endswith(".bias"):
                    parameter.zero_()

    def pictures(self, patches: Tensor, inside: Tensor) -> Tensor:
        """One vector of length 1 a picture, float32 [n, width], of patches [n, P, patch_width]."""
        query = self.query.expand(len(patches), -1, -1)
        pooled = self.pooler(query, self.patch_norm(patches), inside)[:, 0]
        return F.normalize(self.picture_norm(pooled).float(), dim=-1)

    def texts(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Texts [n, T] of these lengths, padded: one vector of length 1 each, float32 [n, width], and their
        tokens' hidden states [n, T, width]. A token behind each text sees all of it, and no token sees that.
        """
        n, length = token_ids.shape
        rows = torch.arange(n, device=token_ids.device)
        padded = F.pad(token_ids, (0, 1))
        padded[rows, lengths] = self.whole
        x = self.tokens(padded) + self.positions.weight[: length + 1]
        for block in self.text:
            x = block(x)
        return F.normalize(self.text_norm(x[rows, lengths]).float(), dim=-1), x[:, :-1]

    def captions(self, hidden: Tensor, patches: Tensor, inside: Tensor) -> Tensor:
        """Hidden states [n, T, width] that `scores` makes the next tokens' scores of."""
        patches = self.patch_norm(patches)
        for block in self.decoder:
            hidden = block(hidden, patches, inside)
        normed: Tensor = self.decoder_norm(hidden)
        return normed

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores [..., vocab_size] of tokens."""
        return F.linear(hidden, self.tokens.weight[: self.whole])
