"""A size in bits a weight, shared out over the decoder's matrices: who takes longer blocks, shorter ones, or
8 bits.

Knows which matrices share the size (projections and tables, not adapters: see `phirt_quant.sizes`), the
formats that they may take, and how many bytes each is. Knows nothing of how costs are measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from phirt.errors import ConfigError
from phirt_export.checkpoint import expected_shapes
from phirt_export.graphs.linear import WeightFormat
from phirt_export.reference import ModelConfig
from phirt_quant.allocation import Choice, allocate

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_PROJECTION = ".base_layer.weight"
# onnxruntime multiplies blocks of 16 to 256 as they lie, others by way of float32.
_SHORTEST_BLOCK, _LONGEST_BLOCK = 16, 256


def is_table(tensor: str) -> bool:
    """Whether a tensor has a row for each token."""
    return tensor in _TABLES


class BitBudget:
    """At most `bits_per_weight` for all projections and tables of a decoder together.

    Each of them takes 4 bits in blocks of `block_size`, twice as long ones (up to 256) or half as long ones,
    or 8 bits in blocks of `block_size`.

    Attributes:
        formats: those of each matrix.

    Raises:
        ConfigError: no choice of formats has that size.
    """

    def __init__(self, bits_per_weight: float, block_size: int, method: str, config: ModelConfig) -> None:
        self._shapes = {
            name: (shape[0], shape[1])
            for name, shape in expected_shapes(config).items()
            if name in _TABLES or name.endswith(_PROJECTION)
        }
        blocks = {min(2 * block_size, max(block_size, _LONGEST_BLOCK)), block_size}
        blocks.add(max(block_size // 2, min(block_size, _SHORTEST_BLOCK)))
        accepted = [WeightFormat(4, block, method) for block in sorted(blocks, reverse=True)]
        accepted.append(WeightFormat(8, block_size, method))
        self.formats = {name: self._different(name, accepted) for name in self._shapes}
        self._weights = sum(rows * columns for rows, columns in self._shapes.values())
        sizes = [[self._size(name, form) for form in of] for name, of in self.formats.items()]
        least, most = (8 * sum(map(pick, sizes)) / self._weights for pick in (min, max))
        if not least <= bits_per_weight <= most:
            raise ConfigError(
                f"{bits_per_weight:g} bits a weight cannot be had with blocks of {block_size}; choose from "
                f"{math.ceil(100 * least) / 100:.2f} to {math.floor(100 * most) / 100:.2f}, or another block "
                "size: longer blocks take fewer bits"
            )
        # No less than the least, which a decimal may round down to.
        smallest = sum(map(min, sizes))
        self._bytes = max(math.floor(bits_per_weight * self._weights / 8), smallest)

    def choose(self, costs: Mapping[str, Sequence[float]]) -> dict[str, WeightFormat]:
        """The format of each matrix, so that all together cost least; `costs` are by matrix and format, as in
        `formats`.
        """
        choices = [
            [Choice(self._size(name, form), cost) for form, cost in zip(of, costs[name], strict=True)]
            for name, of in self.formats.items()
        ]
        picked = allocate(choices, self._bytes)
        return {name: of[i] for (name, of), i in zip(self.formats.items(), picked, strict=True)}

    def _size(self, name: str, form: WeightFormat) -> int:
        return form.stored_bytes(*self._shapes[name])

    def _different(self, name: str, accepted: Sequence[WeightFormat]) -> tuple[WeightFormat, ...]:
        """The accepted formats as this matrix would really store them: short rows take shorter blocks."""
        columns = self._shapes[name][1]
        actual = {dataclasses.replace(form, block_size=form.block_for(columns)): None for form in accepted}
        # A table whose rows no block divides is refused where it is built.
        whole = [form for form in actual if name not in _TABLES or not columns % form.block_size]
        return tuple(whole or actual)
