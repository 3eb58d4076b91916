"""Pictures for training: decoded once into one array, cropped and shaded per batch with torch.

Knows the data package's picture folders, canvases, crops and masks. Knows nothing of prompts, tokens or
models. Geometry matches the runtime's processor for one crop: aspect kept, white below or to the right,
patches that are all padding masked.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from phirt_train.data.records import read_media
from phirt_train.data.shapes import Scene, draw_scene, draw_word
from phirt_train.options import Augmentation


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Pictures of one source on square white canvases, each in the top left corner.

    Attributes:
        source: name of the source.
        canvas: uint8 [n, 3, S, S].
        sizes: float32 [n, 2], width and height of each picture on its canvas.
        labels: one text per picture ("" for rendered scenes).
        scenes: for rendered pictures, what they show; empty for photos.
    """

    source: str
    canvas: Tensor
    sizes: Tensor
    labels: tuple[str, ...]
    scenes: tuple[Scene, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def _onto_canvas(images: Sequence[Image.Image], side: int) -> tuple[Tensor, Tensor]:
    canvas = np.full((len(images), side, side, 3), 255, np.uint8)
    sizes = np.zeros((len(images), 2), np.float32)
    for index, image in enumerate(images):
        ratio = side / max(image.size)
        width, height = max(1, int(image.width * ratio)), max(1, int(image.height * ratio))
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        canvas[index, :height, :width] = np.asarray(resized)
        sizes[index] = width, height
    return torch.from_numpy(canvas).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(sizes)


def load_photos(folder: Path, source: str, split: str, side: int) -> PictureSet:
    """The photos of `images/<source>.<split>` under the data folder, longest side scaled to `side` pixels."""
    labels, images = [], []
    for record, picture in read_media(folder / "images", f"{source}.{split}"):
        labels.append(record["label"])
        images.append(Image.open(io.BytesIO(picture)).convert("RGB"))
    canvas, sizes = _onto_canvas(images, side)
    return PictureSet(source, canvas, sizes, tuple(labels))


def render_scenes(kind: str, count: int, seed: int, side: int) -> PictureSet:
    """`count` rendered pictures: kind "shapes" or "words"."""
    draw = {"shapes": draw_scene, "words": draw_word}[kind]
    scenes = [draw(np.random.default_rng((seed, index)), side) for index in range(count)]
    canvas, sizes = _onto_canvas([scene.image for scene in scenes], side)
    facts = tuple(dataclasses.replace(scene, image=Image.new("RGB", (1, 1))) for scene in scenes)
    return PictureSet(kind, canvas, sizes, ("",) * count, facts)


PLAIN = Augmentation()
RENDERED = ("shapes", "words")


def _boxes(sizes: Tensor, change: Augmentation, rng: np.random.Generator) -> Tensor:
    """Crop boxes [n, 4] (x, y, width, height) in canvas pixels."""
    n = len(sizes)
    area = rng.uniform(change.min_area, 1.0, n)
    aspect = np.exp(rng.uniform(-0.2, 0.2, n)) if change.min_area < 1 else np.ones(n)
    wide = torch.from_numpy(np.minimum(1.0, np.sqrt(area * aspect))).float() * sizes[:, 0]
    high = torch.from_numpy(np.minimum(1.0, np.sqrt(area / aspect))).float() * sizes[:, 1]
    x = torch.from_numpy(rng.random(n)).float() * (sizes[:, 0] - wide)
    y = torch.from_numpy(rng.random(n)).float() * (sizes[:, 1] - high)
    return torch.stack((x, y, wide, high), dim=1)


def _shade(pixels: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation changed by up to `amount`, on values 0..1."""
    n = len(pixels)
    factors = torch.from_numpy(rng.uniform(1 - amount, 1 + amount, (3, n, 1, 1, 1))).float()
    pixels = pixels * factors[0]
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * factors[1] + mean
    grey = pixels.mean(dim=1, keepdim=True)
    return ((pixels - grey) * factors[2] + grey).clamp(0, 1)


def crop_batch(
    canvas: Tensor, sizes: Tensor, resolution: int, patch: int, change: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Normalised pictures and their patch masks, one crop each, as the runtime's processor lays them out.

    Args:
        canvas: uint8 [n, 3, S, S].
        sizes: float32 [n, 2].
        resolution: side R of the result.
        patch: patch size in pixels.
        change: what to vary at random.
        rng: the only source of randomness.

    Returns:
        float32 [n, 3, R, R] in -1..1, and bool [n, R / patch, R / patch].
    """
    n, side = len(canvas), canvas.shape[-1]
    boxes = _boxes(sizes, change, rng)
    x0, y0, wide, high = boxes.unbind(1)
    ratio = resolution / torch.maximum(wide, high)
    out_w, out_h = (
        (wide * ratio + 1e-3).floor().clamp(min=patch),
        (high * ratio + 1e-3).floor().clamp(min=patch),
    )
    line = torch.arange(resolution, dtype=torch.float32) + 0.5
    u = line[None, None, :] / out_w[:, None, None] - 0.5
    v = line[None, :, None] / out_h[:, None, None] - 0.5
    outside = (u > 0.5) | (v > 0.5)
    if change.flip:
        u = u * torch.from_numpy(np.where(rng.random(n) < 0.5, -1.0, 1.0)).float()[:, None, None]
    u, v = torch.broadcast_tensors(u * wide[:, None, None], v * high[:, None, None])
    if change.degrees:
        angle = torch.from_numpy(rng.uniform(-change.degrees, change.degrees, n) * math.pi / 180).float()
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        u, v = u * cos - v * sin, u * sin + v * cos
    u, v = u + (x0 + wide / 2)[:, None, None], v + (y0 + high / 2)[:, None, None]
    places = torch.stack((u, v), dim=-1) * (2 / side) - 1
    white_is_zero = canvas.float() / 255 - 1
    pixels = (
        F.grid_sample(white_is_zero, places, mode="bilinear", padding_mode="zeros", align_corners=False) + 1
    )
    if change.shade:
        pixels = _shade(pixels, change.shade, rng)
    pixels = torch.where(outside[:, None], 1.0, pixels)
    if change.erase:
        pixels = _erase(pixels, change.erase, rng)
    grid = torch.arange(resolution // patch)
    rows = grid[None, :] < (resolution // patch - ((resolution - out_h) // patch))[:, None]
    columns = grid[None, :] < (resolution // patch - ((resolution - out_w) // patch))[:, None]
    return pixels * 2 - 1, rows[:, :, None] & columns[:, None, :]


def _erase(pixels: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """A grey rectangle of up to a third of the side over some of the pictures."""
    n, _, side, _ = pixels.shape
    line = torch.arange(side)
    corners = torch.from_numpy(rng.integers(0, side, (n, 2)))
    spans = torch.from_numpy(rng.integers(side // 8, side // 3 + 1, (n, 2)))
    spans[torch.from_numpy(rng.random(n) >= probability)] = 0
    rows = (line >= corners[:, :1]) & (line < corners[:, :1] + spans[:, :1])
    columns = (line >= corners[:, 1:]) & (line < corners[:, 1:] + spans[:, 1:])
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], 0.5, pixels)
