"""Pictures as the vision tower sees them in one crop: what objectives that train the tower alone share.

Knows files, crops and the tower. Knows nothing of labels, captions or losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phirt.encoders.image_file import open_image
from phirt.encoders.phi4mm_image import ImageConstants
from phirt_export.narrow import narrow
from phirt_export.precision import autocast
from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.data.augmentation import ImageAugmentation
from phirt_train.data.images import read_image
from phirt_train.data.readable import take_readable


class Crops(NamedTuple):
    """Pixels [n, 3, side, side] and patch masks [n, g, g], one crop each.

    Attributes:
        taken: the place of each in its source.
        broken: what is wrong with the pictures in whose place the next was taken.
    """

    pixels: Tensor
    masks: Tensor
    taken: list[int]
    broken: list[str]


class Patches(NamedTuple):
    """Features [n, rows, hidden], and how much of each row lies within the picture, from 0 to 1 [n, rows]."""

    features: Tensor
    weights: Tensor

    def mean(self) -> Tensor:
        """The mean over each picture's rows, [n, hidden]."""
        weights = self.weights[..., None]
        return (self.features.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


class PictureTower:
    """Reads pictures and encodes them."""

    def __init__(self, model: Model, context: TrainingContext) -> None:
        self._model, self._context = model, context
        self.constants = dataclasses.replace(narrow(ImageConstants, model.image_embed.config), max_crops=1)

    def check(self, path: Path) -> None:
        """Raises MediaError for what is no picture, by its header."""
        open_image(path, self._context.limits)

    def crops(
        self,
        paths: Sequence[Path],
        places: Sequence[int],
        side: int,
        change: ImageAugmentation,
        rng: np.random.Generator,
    ) -> Crops:
        """The pictures at these places, changed at random, or, where they are broken, the next ones."""
        constants, limits = dataclasses.replace(self.constants, crop_size=side), self._context.limits
        inputs, taken, broken = [], [], []
        for place in places:
            index, one, wrong = take_readable(
                len(paths), place, lambda item: read_image(paths[item], constants, limits, change, rng)
            )
            inputs.append(one)
            taken.append(index)
            broken += wrong
        pixels = torch.from_numpy(np.stack([one.pixel_values[1] for one in inputs]))
        masks = torch.from_numpy(np.stack([one.patch_mask[1] for one in inputs]))
        return Crops(pixels, masks.view(len(inputs), constants.grid, constants.grid), taken, broken)

    def encode(self, pixels: Tensor, masks: Tensor) -> Patches:
        """What the tower makes of crops."""
        pixels, masks = pixels.to(self._context.device), masks.to(self._context.device)
        with autocast(pixels.device):
            pooled = self._model.image_embed.img_processor(
                pixels.contiguous(memory_format=torch.channels_last), masks
            )
        weights = F.avg_pool2d(masks[:, None].float(), self.constants.pool)
        return Patches(pooled.flatten(1, 2), weights.flatten(1))
