"""Training on the int4 grid: the forward pass sees quantized base weights, the gradient passes straight
through.

Knows the grid of `phirt_quant` (symmetric blocks along the input, scale = the value of greatest magnitude /
-8) and where base weights are. A stage that ends this way is snapped onto the grid, which quantization then
reproduces exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phirt_export.reference import Model
from phirt_export.reference.decoder import RoutedLinear


def to_grid(weight: Tensor, block_size: int) -> Tensor:
    """The nearest int4 values of weight [N, K], K a multiple of the block; same shape and dtype."""
    blocks: Tensor = weight.unflatten(-1, (-1, block_size))
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = extreme / -8.0
    codes = torch.where(scale == 0, 0.0, blocks / torch.where(scale == 0, 1.0, scale)).round().clamp(-8, 7)
    return (codes * scale).flatten(-2)


class StraightThrough:
    """Maps a weight to the grid, with the identity as its gradient."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def __call__(self, weight: Tensor) -> Tensor:
        """Weight [N, K] on the grid."""
        return weight + (to_grid(weight, self.block_size) - weight).detach()


def set_weight_grid(model: Model, block_size: int) -> None:
    """Let every base projection and the embedding table act through the grid."""
    transform = StraightThrough(block_size)
    model.embedding_transform = transform
    for module in model.modules():
        if isinstance(module, RoutedLinear):
            module.transform = transform


@torch.no_grad()
def snap_weights(model: Model) -> None:
    """Replace the weights by their grid values and remove the transforms."""
    assert isinstance(model.embedding_transform, StraightThrough)
    block_size = model.embedding_transform.block_size
    model.embedding_transform = None
    model.model.embed_tokens.weight.copy_(to_grid(model.model.embed_tokens.weight, block_size))
    for module in model.modules():
        if isinstance(module, RoutedLinear):
            module.transform = None
            module.base_layer.weight.copy_(to_grid(module.base_layer.weight, block_size))
