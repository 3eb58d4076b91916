"""Pictures as CLIP and SigLIP see them: one square of a fixed size, normalised, always as many tokens.

Knows Pillow, numpy and the kind's constants. Knows nothing of sessions. The steps are those of transformers'
`SiglipImageProcessor` (stretched to the square) and `CLIPImageProcessor` (the shorter side fitted, the middle
cut out).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

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
from phirt.errors import MediaError
from phirt.fields import Fields, Range, read_dataclass
from phirt.prompt.messages import Features, Inputs

_FILTERS: Mapping[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_ASPECT = 50  # of a picture that is cut: what is resized before is that many squares
_Mean = Annotated[float, Range(-10, 10)]
_Std = Annotated[float, Range(1e-3, 10)]


@dataclasses.dataclass(frozen=True)
class FixedImageConstants:
    """A picture becomes `size` x `size` pixels, each channel (x/255 - mean) / std, and `tokens` rows.

    `fit` says how: "stretch" whatever its shape, or "crop": scaled until the shorter side fits, the middle
    cut out.
    """

    size: Annotated[int, Range(1, 4096)]
    tokens: Annotated[int, Range(1, 1 << 16)]
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    resample: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    fit: Literal["stretch", "crop"] = "stretch"


class Encoder:
    """A graph that takes `pixel_values`, float32 [1, 3, size, size], and gives `image_features`, one row a
    token.
    """

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None:
        self.constants = read_dataclass(FixedImageConstants, constants)
        size = self.constants.size
        self.inputs: InputSpecs = {"pixel_values": ("float32", (1, 3, size, size))}
        output = ("image_features", (self.constants.tokens, hidden_size))
        require_tensors(graph, constants.where, self.inputs, output)

    def prepare(self, source: ImageSource, limits: Limits, detail: ImageDetail) -> Prepared:
        """Reads the picture's header; every picture costs the same, whatever the `detail`."""
        constants = self.constants
        image, key, name = open_image(source, limits)
        width, height = upright_size(image)
        if constants.fit == "crop" and max(width, height) > _MAX_ASPECT * min(width, height):
            raise MediaError(
                f"{name} is {width} x {height} pixels, too long and narrow for this model; crop it"
            )
        return Prepared(
            key,
            constants.tokens,
            lambda: {"pixel_values": process(decode_picture(image, name), constants)[None]},
        )

    def count(self, inputs: Inputs) -> int:
        """The same for every picture."""
        return self.constants.tokens

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [tokens, hidden_size]; there is one projector."""
        return first_output(graph, inputs)


def process(picture: Image.Image, constants: FixedImageConstants) -> npt.NDArray[np.float32]:
    """float32 [3, size, size] of an upright RGB picture."""
    size, resample = constants.size, _FILTERS[constants.resample]
    if constants.fit == "stretch":
        square = picture.resize((size, size), resample)
    else:
        short, long = sorted(picture.size)
        other = int(size * long / short)
        scaled = (size, other) if picture.width <= picture.height else (other, size)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        square = picture.resize(scaled, resample).crop((left, top, left + size, top + size))
    values: npt.NDArray[np.float32] = np.asarray(square, dtype=np.float32) / np.float32(255)
    values -= np.array(constants.mean, np.float32)
    values /= np.array(constants.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
