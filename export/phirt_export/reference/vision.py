"""The vision tower of the reference model: crops in, one run of decoder-width rows per image out.

Knows what follows preprocessing: position buckets, masks, SigLIP layers, pooling, assembly, projection, as
`vision_siglip_navit.py` and `modeling_phi4mm.py` beside Phi-4-multimodal's weights have them. Knows nothing
of image files or of how crops were cut.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt_export.reference.config import VisionConfig


def position_buckets(patch_mask: Tensor, grid: int) -> Tensor:
    """Position ids int64 [N, g, g] of patches with mask [N, g, g]: the table has grid·grid entries, g may
    differ.

    A valid patch at row i of n_h valid rows falls into the bucket that counts the boundaries k/grid (k =
    1..grid-1) at or below i/n_h, and likewise for columns; masked patches get id 0.
    """
    boundaries = torch.arange(1, grid, device=patch_mask.device, dtype=torch.float64) / grid
    side = torch.arange(patch_mask.shape[1], device=patch_mask.device, dtype=torch.float64)

    def bucket(valid: Tensor) -> Tensor:
        coordinate = (side[None, :] / valid.clamp(min=1)[:, None].double()).clamp(max=1 - 1e-6)
        return torch.bucketize(coordinate, boundaries, right=True)

    rows, columns = bucket(patch_mask[:, :, 0].sum(1)), bucket(patch_mask[:, 0, :].sum(1))
    return (rows[:, :, None] * grid + columns[:, None, :]) * patch_mask


class StemStage(nn.Module):
    """Halves the picture: strided convolution, then (from the second stage on) a residual pair."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(out_channels)
        self.has_residual = residual
        if residual:
            self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(out_channels)
            self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(self.down(x)))
        if not self.has_residual:
            return x
        change: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + change)


class Embeddings(nn.Module):
    """Patches to vectors (one convolution, or the stem), and the table of bucketed positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.stem_channels:
            widths = (3, *config.stem_channels)
            stages = [StemStage(widths[i], widths[i + 1], residual=i > 0) for i in range(len(widths) - 1)]
            self.stem = nn.Sequential(*stages)
        else:
            self.patch_embedding = nn.Conv2d(
                3, config.hidden_size, config.patch_size, stride=config.patch_size
            )
        self.position_embedding = nn.Embedding(config.grid**2, config.hidden_size)
        self.has_stem = bool(config.stem_channels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Patch vectors [N, patches, hidden] of [N, 3, R, R], without positions."""
        patches: Tensor = self.stem(pixel_values) if self.has_stem else self.patch_embedding(pixel_values)
        return patches.flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Full attention over the patches of one crop, masked patches excluded as keys."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            projection(x).view(batch, length, self.num_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_bias.to(q.dtype))
        attended: Tensor = self.out_proj(y.transpose(1, 2).reshape(batch, length, width))
        return attended


class VisionLayer(nn.Module):
    """Pre-LayerNorm block with a tanh-GELU feed-forward."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = SelfAttention(config.hidden_size, config.num_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(config.hidden_size, config.intermediate_size),
                act=nn.GELU(approximate="tanh"),
                fc2=nn.Linear(config.intermediate_size, config.hidden_size),
            )
        )

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), key_bias)
        change: Tensor = self.mlp(self.layer_norm2(x))
        return x + change


class VisionLayers(nn.Module):
    """The blocks one after another; a module of its own because of its place in checkpoints' names."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, key_bias)
        return x


class VisionTower(nn.Module):
    """SigLIP-style encoder; its output is the last computed layer's, without a final norm."""

    MASKED = -1e9  # finite, so that a crop whose every key is masked still has a defined softmax

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = VisionLayers(config)

    def forward(self, pixel_values: Tensor, patch_mask: Tensor) -> Tensor:
        """Pooled features of crops.

        Args:
            pixel_values: [N, 3, R, R], normalised to -1..1.
            patch_mask: bool [N, g, g], False where a patch is padding.

        Returns:
            [N, g / pool, g / pool, hidden_size].
        """
        patches: Tensor = self.embeddings(pixel_values)
        return self.encode(patches, patch_mask)

    def encode(self, patches: Tensor, patch_mask: Tensor) -> Tensor:
        """Pooled features, as `forward` returns them, of patch vectors [N, g², hidden] from `embeddings`."""
        side = patch_mask.shape[1]
        ids = position_buckets(patch_mask, self.config.grid).flatten(1)
        x = patches + self.embeddings.position_embedding(ids)
        key_bias = torch.where(patch_mask.flatten(1), 0.0, self.MASKED)[:, None, None, :]
        encoded: Tensor = self.encoder(x, key_bias)
        maps = encoded.transpose(1, 2).unflatten(2, (side, side))
        return F.avg_pool2d(maps, self.config.pool).permute(0, 2, 3, 1)


class ImageEmbed(nn.Module):
    """Tower, separators and projector: everything between crops and decoder-width rows."""

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.img_processor = VisionTower(config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, config.hidden_size))
        self.img_projection = nn.Sequential(
            nn.Linear(config.hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )

    def assemble(self, pooled: Tensor, crop_grid: tuple[int, int], feature_grid: tuple[int, int]) -> Tensor:
        """Rows [U·V + U + 1 + g² + g, hidden] of one image before projection (order sub_glb).

        Args:
            pooled: [1 + h·w, g, g, hidden], global view first, then crops row by row.
            crop_grid: (h, w).
            feature_grid: (U, V), pooled rows and columns of the stitched crops that are not padding.
        """
        (h, w), (u, v), (_, g, _, c) = crop_grid, feature_grid, pooled.shape
        stitched = pooled[1:].view(h, w, g, g, c).transpose(1, 2).reshape(h * g, w * g, c)[:u, :v]

        def with_separators(rows: Tensor) -> Tensor:
            separators = self.sub_GN[0].expand(rows.shape[0], 1, c).to(rows.dtype)
            return torch.cat((rows, separators), dim=1).reshape(-1, c)

        glb = self.glb_GN[0].to(pooled.dtype)
        return torch.cat((with_separators(stitched), glb, with_separators(pooled[0])))

    def forward(
        self,
        pixel_values: Tensor,
        patch_mask: Tensor,
        crop_grid: tuple[int, int],
        feature_grid: tuple[int, int],
    ) -> Tensor:
        """Image features [rows, hidden_size] of one image; see `VisionTower.forward` and `assemble`."""
        pooled = self.img_processor(pixel_values, patch_mask)
        features: Tensor = self.img_projection(self.assemble(pooled, crop_grid, feature_grid))
        return features
