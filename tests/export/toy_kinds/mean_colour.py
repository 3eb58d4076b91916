"""An encoder kind that the tests add: a picture is its mean colour, three numbers and one token.

This file is all that adding a kind to the runtime takes.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from phirt.bundle.manifest import GraphSpec, Limits
from phirt.encoders.encoder import (
    GraphRunner,
    ImageDetail,
    InputSpecs,
    Prepared,
    first_output,
    require_tensors,
)
from phirt.encoders.image_file import ImageSource, decode_picture, open_image
from phirt.fields import Fields, Range, read_dataclass
from phirt.prompt.messages import Features, Inputs


@dataclasses.dataclass(frozen=True)
class Constants:
    """What brightest pixels are divided by."""

    white: Annotated[float, Range(1.0, 255.0)]


class Encoder:
    """A graph that takes `colour`, float32 [1, 3], and gives `image_features`."""

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None:
        self.constants = read_dataclass(Constants, constants)
        self.inputs: InputSpecs = {"colour": ("float32", (1, 3))}
        require_tensors(graph, constants.where, self.inputs, ("image_features", (1, hidden_size)))

    def prepare(self, source: ImageSource, limits: Limits, detail: ImageDetail) -> Prepared:
        """One token, whatever the picture."""
        image, key, name = open_image(source, limits)
        white = np.float32(self.constants.white)

        def make_inputs() -> Inputs:
            pixels = np.asarray(decode_picture(image, name), dtype=np.float32)
            return {"colour": pixels.mean(axis=(0, 1), dtype=np.float32)[None] / white}

        return Prepared(key, 1, make_inputs)

    def count(self, inputs: Inputs) -> int:
        """One."""
        return 1

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [1, hidden_size]."""
        return first_output(graph, inputs)
