"""Pictures for an image encoder whose graph takes one crop: the crops run one by one, and their patches are
put together here.

Knows the graph's contract and Phi-4-multimodal's order of patches and separators. How crops are cut is
`phi4mm_image`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import GraphSpec, Limits
from phirt.encoders import phi4mm_image
from phirt.encoders.encoder import (
    GraphRunner,
    ImageDetail,
    InputSpecs,
    Prepared,
    require_tensors,
)
from phirt.encoders.image_file import ImageSource
from phirt.encoders.phi4mm_image import ImageConstants, cap_crops, prepare_image
from phirt.fields import Fields, read_dataclass
from phirt.prompt.messages import Features, Inputs

_EXCLUDED = -1e4
_SEPARATORS = 2


class Encoder:
    """A graph that takes one crop and gives `crop_features`: its patches, row by row, and two separators."""

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None:
        self.constants = read_dataclass(ImageConstants, constants)
        size, patches = self.constants.crop_size, self.constants.grid**2
        self._side = self.constants.grid // self.constants.pool
        self.inputs: InputSpecs = phi4mm_image.input_specs(self.constants)
        taken: InputSpecs = {
            "pixel_values": ("float32", (1, 3, size, size)),
            "patch_bias": ("float32", (1, 1, 1, patches)),
            "position_ids": ("int32", (1, patches)),
        }
        rows = self._side**2 + _SEPARATORS
        require_tensors(graph, constants.where, taken, ("crop_features", (rows, hidden_size)))

    def prepare(self, source: ImageSource, limits: Limits, detail: ImageDetail) -> Prepared:
        """As for a graph that takes all crops at once."""
        return prepare_image(source, cap_crops(self.constants, detail), limits)

    def count(self, inputs: Inputs) -> int:
        """The rows of one picture's crops."""
        return phi4mm_image.count_rows(inputs, self.constants)

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [tokens, hidden_size]; there is one projector."""
        made = [np.asarray(graph.run(feeds)[0]) for feeds in crops(inputs)]
        side, width = self._side, made[0].shape[1]
        ends, middle = made[0][-2], made[0][-1:]
        squares = [one[:-_SEPARATORS].reshape(side, side, width) for one in made]
        down, across = inputs["crop_grid"].tolist()
        grid = np.stack(squares[1:]).reshape(down, across, side, side, width)
        canvas = grid.transpose(0, 2, 1, 3, 4).reshape(down * side, across * side, width)
        rows, columns = inputs["feature_grid"].tolist()
        parts = [_with_ends(canvas[:rows, :columns], ends), middle, _with_ends(squares[0], ends)]
        return np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)


def crops(inputs: Inputs) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """What the graph takes for each crop of a picture, the whole view first."""
    mask = inputs["patch_mask"]
    bias = np.where(mask, np.float32(0), np.float32(_EXCLUDED)).astype(np.float32)
    for i in range(len(mask)):
        yield {
            "pixel_values": np.ascontiguousarray(inputs["pixel_values"][i : i + 1]),
            "patch_bias": bias[i].reshape(1, 1, 1, -1),
            "position_ids": inputs["position_ids"][i : i + 1].astype(np.int32),
        }


def _with_ends(square: npt.NDArray[Any], ends: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Patches [rows, columns, width] with a separator behind each row, as [rows · (columns + 1), width]."""
    height, _, width = square.shape
    column = np.broadcast_to(ends, (height, 1, width))
    return np.concatenate([square, column], axis=1).reshape(-1, width)
