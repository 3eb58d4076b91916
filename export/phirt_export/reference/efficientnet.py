"""EfficientNet-Lite as a tower: a square picture in, rows of the decoder's width out.

The trunk is that of Google's EfficientNet-Lite (Liu 2020; Tan and Le, arXiv 1905.11946), batch norms folded
into the convolutions before them. Its classifier goes on working: beside the rows of the picture's parts, the
tower gives rows of words, the mean of the names of the classes it sees, as the decoder embeds them, weighted
by their probabilities. Knows pixels and shapes. Knows nothing of files, names or training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt_export.reference.config import PhotoBlock, PhotoConfig

POOL_SIDE, POOL_STEP = 3, 2


def padding(size: int, kernel: int, step: int) -> tuple[int, int]:
    """Zeros before and after a line of `size`, so that ceil(size / step) windows fit: TensorFlow's `SAME`."""
    total = max(0, (-(-size // step) - 1) * step + kernel - size)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """A convolution with a bias, its input padded as TensorFlow pads."""

    def __init__(self, inputs: int, outputs: int, kernel: int, step: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, step, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (step, _) = self.kernel_size, self.stride
        rows, columns = (padding(size, kernel, step) for size in x.shape[-2:])
        return super().forward(F.pad(x, (*columns, *rows)))


class Block(nn.Module):
    """Widen, look around in every channel alone, narrow; what came in is added where shapes allow."""

    def __init__(self, config: PhotoBlock) -> None:
        super().__init__()
        inner = config.inputs * config.expansion
        self.expand = SameConv(config.inputs, inner, 1) if config.expansion > 1 else None
        self.depthwise = SameConv(inner, inner, config.kernel, config.step, inner)
        self.project = SameConv(inner, config.outputs, 1)
        self.is_residual = config.is_residual

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        y: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + y if self.is_residual else y


class Trunk(nn.Module):
    """Pixels [B, 3, size, size] to maps [B, channels, grid, grid]."""

    def __init__(self, config: PhotoConfig) -> None:
        super().__init__()
        self.stem = SameConv(3, config.blocks[0].inputs, 3, 2)
        self.blocks = nn.ModuleList(Block(block) for block in config.blocks)
        self.head = SameConv(config.blocks[-1].outputs, config.channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu6(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x))


class PhotoEmbed(nn.Module):
    """The trunk, its classifiers and the projector.

    `embed` is `project(look(pixels))`; what `look` gives does not change while trunk and pictures stay.
    """

    def __init__(self, config: PhotoConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.classifiers = nn.ModuleList(nn.Linear(config.channels, len(names)) for names in config.classes)
        # The words of each class's name, one embedding after the other, a column a class.
        self.names = nn.ModuleList(
            nn.Linear(len(names), config.words * hidden_size, bias=False) for names in config.classes
        )
        self.projection = nn.Sequential(
            nn.Linear(config.channels, config.projector_size),
            nn.GELU(),
            nn.Linear(config.projector_size, hidden_size),
        )
        self.hidden_size = hidden_size

    def look(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] to the means of overlapping windows and of all: [B, windows + 1,
        channels].
        """
        maps = self.trunk(pixels)
        windows = F.avg_pool2d(maps, POOL_SIDE, POOL_STEP).flatten(2)
        return torch.cat((windows, maps.mean((2, 3))[..., None]), 2).transpose(1, 2)

    def scores(self, seen: Tensor, classifier: int) -> Tensor:
        """What a classifier says of all of a picture, before the softmax: [B, classes]."""
        found: Tensor = self.classifiers[classifier](seen[:, -1])
        return found

    def project(self, seen: Tensor) -> Tensor:
        """What `look` gives to rows [B, tokens, hidden]: the words of each classifier, then the windows."""
        batch = len(seen)
        rows = [
            names(F.softmax(self.scores(seen, n), -1)).view(batch, self.config.words, self.hidden_size)
            for n, names in enumerate(self.names)
        ]
        return torch.cat((*rows, self.projection(seen[:, :-1])), 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] to rows [B, tokens, hidden]."""
        return self.project(self.look(pixels))
