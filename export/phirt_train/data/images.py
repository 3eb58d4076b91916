"""Pictures for training: decoded, changed at random, and prepared by the runtime's own processor, so that a
model is trained on what it will see.

Knows Pillow, files and augmentation. Knows nothing of records, tokens or models.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from phirt.bundle.manifest import Limits
from phirt.encoders.image_file import decode_picture, open_image
from phirt.encoders.phi4mm_image import ImageConstants, ImageInputs, prepare_image, process_image
from phirt_train.data.augmentation import ImageAugmentation

_WHITE, _GREY = (255, 255, 255), (128, 128, 128)
_ASPECT = 0.2  # largest change of a crop's aspect, as a logarithm


def read_image(
    path: Path,
    constants: ImageConstants,
    limits: Limits,
    change: ImageAugmentation,
    rng: np.random.Generator,
) -> ImageInputs:
    """The vision tower's inputs for a file, changed at random. Raises MediaError for what is no picture."""
    opened, _, name = open_image(path, limits)
    picture = augment_image(decode_picture(opened, name), change, rng, constants.min_side)
    return process_image(picture, constants, name)


def count_image_tokens(path: Path, constants: ImageConstants, limits: Limits) -> int:
    """Rows that the unchanged picture becomes, by the file's header."""
    return prepare_image(path, constants, limits).num_tokens


def augment_image(
    picture: Image.Image, change: ImageAugmentation, rng: np.random.Generator, min_side: int = 1
) -> Image.Image:
    """An RGB picture cropped, mirrored, turned, shaded and partly greyed out as `change` allows; no side of
    the crop is shorter than `min_side`, or than the picture's own.
    """
    if change.min_area < 1 or change.flip or change.rotate_degrees:
        picture = _transformed(picture, change, rng, min_side)
    if change.color_jitter:
        low, high = 1 - change.color_jitter, 1 + change.color_jitter
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = enhance(picture).enhance(float(rng.uniform(low, high)))
    if rng.random() < change.random_erasing:
        picture = _erased(picture, rng)
    return picture


def _transformed(
    picture: Image.Image, change: ImageAugmentation, rng: np.random.Generator, min_side: int
) -> Image.Image:
    """A random crop, perhaps mirrored and turned, by one affine map; white where it leaves the picture."""
    width, height = picture.size
    area = rng.uniform(change.min_area, 1.0)
    aspect = math.exp(rng.uniform(-_ASPECT, _ASPECT)) if change.min_area < 1 else 1.0
    wide = max(min(width, min_side), round(width * min(1.0, math.sqrt(area * aspect))))
    high = max(min(height, min_side), round(height * min(1.0, math.sqrt(area / aspect))))
    x, y = rng.random() * (width - wide) + wide / 2, rng.random() * (height - high) + high / 2
    mirror = -1.0 if change.flip and rng.random() < 0.5 else 1.0
    angle = math.radians(rng.uniform(-change.rotate_degrees, change.rotate_degrees))
    cos, sin = math.cos(angle), math.sin(angle)
    # Maps a point of the result, taken from its centre, to one of the picture.
    a, b, d, e = mirror * cos, -sin, mirror * sin, cos
    c, f = x - a * wide / 2 - b * high / 2, y - d * wide / 2 - e * high / 2
    return picture.transform(
        (wide, high),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
        fillcolor=_WHITE,
    )


def _erased(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A grey rectangle of up to a third of the longer side over the picture."""
    side = max(picture.size)
    wide, high = (int(span) for span in rng.integers(max(1, side // 8), side // 3 + 2, 2))
    left, top = int(rng.integers(0, picture.width)), int(rng.integers(0, picture.height))
    covered = picture.copy()
    covered.paste(_GREY, (left, top, min(left + wide, picture.width), min(top + high, picture.height)))
    return covered
