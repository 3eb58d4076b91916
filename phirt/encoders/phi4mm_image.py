"""Pictures as Phi-4-multimodal sees them: dynamic-HD crops beside a global view, masks, position buckets.

Knows Pillow, numpy and the kind's constants. Knows nothing of sessions or tokens beyond their number.
Formulas are those of the model's published processor (`processing_phi4mm.py` beside its weights) and of
transformers' `Phi4MultimodalImageProcessor`, with their 448, 14, 36 and 10 replaced by the bundle's sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from phirt.bundle.manifest import GraphSpec, Limits
from phirt.encoders.encoder import (
    GraphRunner,
    ImageDetail,
    InputSpecs,
    Prepared,
    first_output,
    require_tensors,
)
from phirt.encoders.image_file import ImageSource, decode_picture, open_image, upright_size
from phirt.encoders.source import content_key
from phirt.errors import MediaError
from phirt.fields import Fields, Range, read_dataclass
from phirt.prompt.messages import Features, Inputs

# At most this many crops of a picture. A dozen keeps any one picture of Phi-4-multimodal below 3,600 tokens,
# within the decoder's original context of 4096.
DETAIL_CROPS: Mapping[ImageDetail, int | None] = {"low": 1, "auto": 12, "high": None}


@dataclasses.dataclass(frozen=True)
class ImageConstants:
    """Sizes in pixels (`crop_size`, `patch_size`, `min_side`) and patches (`pool`)."""

    crop_size: Annotated[int, Range(1, 4096)]
    patch_size: Annotated[int, Range(1, 4096)]
    pool: Annotated[int, Range(1, 64)]
    max_crops: Annotated[int, Range(1, 256)]
    min_side: Annotated[int, Range(1, 4096)]

    def __post_init__(self) -> None:
        if self.crop_size % (self.patch_size * self.pool):
            raise ValueError(
                f"crop_size {self.crop_size} is no multiple of patch_size x pool, "
                f"{self.patch_size * self.pool}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.patch_size


class Encoder:
    """A graph that takes the crops of one picture (see ImageInputs) and gives `image_features`."""

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None:
        self.constants = read_dataclass(ImageConstants, constants)
        self.inputs: InputSpecs = input_specs(self.constants)
        require_tensors(graph, constants.where, self.inputs, ("image_features", (None, hidden_size)))

    def prepare(self, source: ImageSource, limits: Limits, detail: ImageDetail) -> Prepared:
        """Reads the picture's header; `detail` bounds its crops."""
        return prepare_image(source, cap_crops(self.constants, detail), limits)

    def count(self, inputs: Inputs) -> int:
        """The rows that the graph makes of one picture's crops."""
        return count_rows(inputs, self.constants)

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [tokens, hidden_size]; there is one projector."""
        return first_output(graph, inputs)


def input_specs(spec: ImageConstants) -> InputSpecs:
    """What is prepared of one picture."""
    size, patches = spec.crop_size, spec.grid**2
    return {
        "pixel_values": ("float32", (None, 3, size, size)),
        "patch_mask": ("bool", (None, patches)),
        "position_ids": ("int64", (None, patches)),
        "crop_grid": ("int64", (2,)),
        "feature_grid": ("int64", (2,)),
    }


def count_rows(inputs: Inputs, spec: ImageConstants) -> int:
    """The rows of features of one picture's inputs. Raises ValueError for such as no picture makes."""
    pooled = spec.grid // spec.pool
    (down, across), (rows, columns) = inputs["crop_grid"].tolist(), inputs["feature_grid"].tolist()
    crops = {len(inputs[name]) for name in ("pixel_values", "patch_mask", "position_ids")}
    fits = 1 <= rows <= down * pooled and 1 <= columns <= across * pooled
    if crops != {1 + down * across} or not fits or across > spec.max_crops:
        raise ValueError(f"{sorted(crops)} crops are no picture of {down} x {across} crops")
    return features_of(rows, columns, spec)


def prepare_image(source: ImageSource, constants: ImageConstants, limits: Limits) -> Prepared:
    """A picture by its header alone. Raises MediaError for what is none, or has a side that is too small."""
    image, content, name = open_image(source, limits)
    size = upright_size(image)
    across, down = choose_crops(size, constants)
    # The same picture in another grid of crops has other features.
    key = content_key(content.encode(), f"{across}x{down}".encode())
    count = count_tokens(size, constants, name)
    return Prepared(key, count, lambda: process_image(image, constants, name).as_inputs())


@dataclasses.dataclass(frozen=True, eq=False)
class ImageInputs:
    """One picture as the vision graph takes it; N = 1 + h*w crops, the global view first; G patches a crop's
    side.

    `pixel_values` float32 [N, 3, R, R] in -1..1; `patch_mask` bool [N, G*G]; `position_ids` int64 [N, G*G];
    `crop_grid` int64 (h, w); `feature_grid` int64 (U, V), the pooled patches that show the picture and not
    its padding.
    """

    pixel_values: npt.NDArray[np.float32]
    patch_mask: npt.NDArray[np.bool_]
    position_ids: npt.NDArray[np.int64]
    crop_grid: npt.NDArray[np.int64]
    feature_grid: npt.NDArray[np.int64]

    def as_inputs(self) -> Inputs:
        """The arrays by graph input name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a picture goes on its canvas, in pixels, as (width, height); `crops` counts (across, down)."""

    crops: tuple[int, int]
    canvas: tuple[int, int]
    resized: tuple[int, int]


def process_image(image: Image.Image, spec: ImageConstants, name: str) -> ImageInputs:
    """Decodes `image` and makes the vision graph's inputs. Raises MediaError if it is
    damaged or too small.
    """
    layout = plan(upright_size(image), spec, name)
    return build_inputs(decode_picture(image, name), layout, spec)


def build_inputs(picture: Image.Image, layout: Layout, spec: ImageConstants) -> ImageInputs:
    """The inputs for an upright RGB picture placed as `layout` says."""
    pixels = np.asarray(_on_canvas(picture, layout))
    (across, down), size, grid = layout.crops, spec.crop_size, spec.grid
    values = np.empty((1 + across * down, 3, size, size), dtype=np.float32)
    _normalise(resize_bicubic(pixels, size), out=values[0])
    for index, out in enumerate(values[1:]):
        row, column = divmod(index, across)
        top, left = row * size, column * size
        _normalise(pixels[top : top + size, left : left + size], out=out)
    mask = patch_mask(layout, spec)
    masks = mask.reshape(down, grid, across, grid).transpose(0, 2, 1, 3).reshape(-1, grid, grid)
    masks = np.concatenate([np.ones((1, grid, grid), dtype=bool), masks])
    return ImageInputs(
        pixel_values=values,
        patch_mask=masks.reshape(len(masks), -1),
        position_ids=np.stack([position_ids(one) for one in masks]),
        crop_grid=np.array([down, across], dtype=np.int64),
        feature_grid=np.array(feature_grid(mask, spec), dtype=np.int64),
    )


def _on_canvas(picture: Image.Image, layout: Layout) -> Image.Image:
    """The picture resized (bilinear, antialiased where it shrinks), with white to its right or below it."""
    resized = picture.resize(layout.resized, Image.Resampling.BILINEAR)
    if layout.resized == layout.canvas:
        return resized
    canvas = Image.new("RGB", layout.canvas, (255, 255, 255))
    canvas.paste(resized)
    return canvas


def _normalise(pixels: npt.NDArray[Any], out: npt.NDArray[np.float32]) -> None:
    """Writes (x/255 - 0.5) / 0.5 of [H, W, 3] to `out` [3, H, W], in place: a crop stays in the processor's
    cache.
    """
    out[...] = pixels.transpose(2, 0, 1)
    out /= 255
    out -= 0.5
    out /= 0.5


def count_tokens(size: tuple[int, int], spec: ImageConstants, name: str) -> int:
    """Placeholders for an upright picture of `size` (width, height): U*V + U + 1 + g*g + g."""
    rows, columns = feature_grid(patch_mask(plan(size, spec, name), spec), spec)
    return features_of(rows, columns, spec)


def features_of(rows: int, columns: int, spec: ImageConstants) -> int:
    """Rows of features: the kept grid with a separator behind each row, one between, and the global view."""
    pooled = spec.grid // spec.pool
    return rows * columns + rows + 1 + pooled * pooled + pooled


def cap_crops(spec: ImageConstants, detail: ImageDetail) -> ImageConstants:
    """`spec` with the crops that `detail` allows: "low" one beside the global view, "auto" twelve, "high" the
    model's own maximum.

    For Phi-4-multimodal a picture then costs at most 545, 3,537 or 10,065 tokens.
    """
    cap = DETAIL_CROPS[detail]
    return spec if cap is None else dataclasses.replace(spec, max_crops=min(cap, spec.max_crops))


def choose_crops(size: tuple[int, int], spec: ImageConstants) -> tuple[int, int]:
    """How many crops (across, down) a picture gets: as many as cover it, or else the nearest aspect within
    the limit.
    """
    width, height = size
    side = spec.crop_size
    across, down = math.ceil(width / side), math.ceil(height / side)
    if across * down <= spec.max_crops:
        return across, down
    limit = spec.max_crops
    pairs = [(i, j) for i in range(1, limit + 1) for j in range(1, limit // i + 1)]
    best, best_difference = (1, 1), math.inf
    for i, j in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        difference = abs(width / height - i / j)
        tie_goes_on = difference == best_difference and width * height > 0.5 * side * side * i * j
        if difference < best_difference or tie_goes_on:
            best, best_difference = (i, j), difference
    return best


def plan(size: tuple[int, int], spec: ImageConstants, name: str) -> Layout:
    """The canvas for a picture of `size` (width, height), and the picture's size on it, aspect kept.

    Raises MediaError where a side is below the limit, before or after resizing.
    """
    width, height = size
    if min(size) < spec.min_side:
        raise MediaError(f"{name} is {width} x {height} pixels; each side needs at least {spec.min_side}")
    crops = choose_crops(size, spec)
    canvas = (crops[0] * spec.crop_size, crops[1] * spec.crop_size)
    ratio_w, ratio_h = canvas[0] / width, canvas[1] / height
    resized = (canvas[0], int(height * ratio_w)) if ratio_w < ratio_h else (int(width * ratio_h), canvas[1])
    if min(resized) < spec.min_side:
        raise MediaError(
            f"{name} is {width} x {height} pixels, too long and narrow: scaled to the model's canvas it is "
            f"{resized[0]} x {resized[1]}, each side needs at least {spec.min_side}; crop it"
        )
    return Layout(crops, canvas, resized)


def patch_mask(layout: Layout, spec: ImageConstants) -> npt.NDArray[np.bool_]:
    """bool [down*G, across*G]: False for the patches wholly in the padding at the right or the bottom."""
    mask = np.ones((layout.crops[1] * spec.grid, layout.crops[0] * spec.grid), dtype=bool)
    right = (layout.canvas[0] - layout.resized[0]) // spec.patch_size
    bottom = (layout.canvas[1] - layout.resized[1]) // spec.patch_size
    mask[:, mask.shape[1] - right :] = False
    mask[mask.shape[0] - bottom :, :] = False
    return mask


def feature_grid(mask: npt.NDArray[np.bool_], spec: ImageConstants) -> tuple[int, int]:
    """(U, V): rows and columns of pooled patches that are kept, from the canvas's patch mask."""
    pooled = mask[:: spec.pool, :: spec.pool]
    return int(pooled[:, 0].sum()), int(pooled[0].sum())


def position_ids(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """int64 [G*G] for one crop's mask bool [G, G]: patch i of n valid ones falls into bucket floor(i*G/n) of
    each axis.

    That is the count of boundaries k/G at or below i/n, as SigLIP's buckets are defined, in exact arithmetic.
    Masked patches get 0.
    """
    grid = len(mask)
    ids = np.zeros((grid, grid), dtype=np.int64)
    rows, columns = int(mask[:, 0].sum()), int(mask[0].sum())
    if rows and columns:
        down = np.arange(rows, dtype=np.int64) * grid // rows
        across = np.arange(columns, dtype=np.int64) * grid // columns
        ids[:rows, :columns] = down[:, None] * grid + across
    return ids.reshape(-1)


def resize_bicubic(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[np.float32]:
    """[H, W, C] to float32 [size, size, C] by cubic convolution (a = -0.75), no antialiasing, half-pixel
    centres, clamped borders.

    The same as torch's `interpolate(mode="bicubic", align_corners=False)`; sizes that already fit pass
    unchanged. The kernel's weights add up to 1, so normalising before or after gives the same.
    """
    for axis in (0, 1):
        if pixels.shape[axis] != size:
            pixels = _cubic_along(pixels, axis, size)
    return np.asarray(pixels, dtype=np.float32)


def _cubic_along(pixels: npt.NDArray[Any], axis: int, size: int) -> npt.NDArray[np.float32]:
    length = pixels.shape[axis]
    position = (np.arange(size) + 0.5) * (length / size) - 0.5
    first = np.floor(position)
    offset = position - first
    shape = [size if each == axis else 1 for each in range(3)]
    result: npt.NDArray[np.float32] | None = None
    for tap in range(-1, 3):
        index = np.clip(first.astype(np.int64) + tap, 0, length - 1)
        part = np.take(pixels, index, axis=axis).astype(np.float32, copy=False)
        part *= _cubic_weight(np.abs(offset - tap)).astype(np.float32).reshape(shape)
        if result is None:
            result = part
        else:
            result += part
    assert result is not None
    return result


def _cubic_weight(x: npt.NDArray[np.float64], a: float = -0.75) -> npt.NDArray[np.float64]:
    """Keys's kernel at distance x, 0 <= x <= 2."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)
