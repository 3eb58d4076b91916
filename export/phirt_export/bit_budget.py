"""Who of the decoder's matrices takes longer blocks, shorter ones, 6 bits or 8: so that all together have a
given size and cost least, or cost little and are smallest.

Knows which matrices share the size (projections and tables, not adapters: see `phirt_quant.sizes`), the
formats that they may take, and how many bytes each is. Knows nothing of how costs are measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from phirt.errors import ConfigError
from phirt_export.calibration.sensitivity import Costs, MatrixRows
from phirt_export.checkpoint import expected_shapes
from phirt_export.graphs.weight_format import Chosen, RowFormat, WeightFormat
from phirt_export.reference import ModelConfig
from phirt_quant.allocation import Choice, allocate, allocate_within
from phirt_quant.blockwise import block_within

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_PROJECTION = ".base_layer.weight"
# onnxruntime multiplies blocks of 16 to 256 as they lie, others by way of float32.
_SHORTEST_BLOCK, _LONGEST_BLOCK = 16, 256
# The blocks that so many bits may have, in sizes of the one that suits the model.
_BLOCKS = {4: (2, 1, 0.5), 6: (4, 2, 1), 8: (4, 2, 1)}
# Where the rows of a table may change their format. Merged tokens are numbered by how often they occurred
# when the tokenizer was made, so that the first rows count most.
_TABLE_EDGES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# The share of all weights whose inputs are rounded twice: it takes 0.7 of their time more.
_ROUNDED_TWICE = 0.05


# Divergence of the predictions in nats, as `calibration.rounding_costs` expects it, up to which an export is
# made as small as it can be where no size is asked for.
MOST_DIVERGENCE = 0.026


def is_table(tensor: str) -> bool:
    """Whether a tensor has a row for each token."""
    return tensor in _TABLES


class BitBudget:
    """At most `bits_per_weight` for all projections and tables of a decoder together; None: the fewest that
    are expected to keep the divergence within MOST_DIVERGENCE.

    Each of them takes 4, 6 or 8 bits in blocks of about `block_size`; queries, keys and values, gate and up
    are asked one by one, though they lie in one tensor, and so are parts of a table. Where it counts most,
    inputs are rounded twice.

    Attributes:
        formats: those that some rows may have.

    Raises:
        ConfigError: no choice of formats has that size.
    """

    def __init__(
        self, bits_per_weight: float | None, block_size: int, method: str, config: ModelConfig
    ) -> None:
        self._columns = {
            name: shape[1]
            for name, shape in expected_shapes(config).items()
            if name in _TABLES or name.endswith(_PROJECTION)
        }
        rows = [rows for name in self._columns for rows in _separate(name, config)]
        accepted = [
            WeightFormat(bits, block_within(bits, block), method, "float16")
            for bits, times in _BLOCKS.items()
            for block in dict.fromkeys(_block(block_size, by) for by in times)
        ]
        self.formats = {of: self._different(of.tensor, accepted) for of in rows}
        self._weights = {of: (of.stop - of.first) * self._columns[of.tensor] for of in rows}
        self._bytes = None if bits_per_weight is None else self._bytes_of(bits_per_weight, block_size)

    def choose(self, costs: Costs) -> Chosen:
        """The formats of each tensor's rows, so that all together cost least in the size that was asked for,
        or are smallest.
        """
        choices = [
            [Choice(self._size(rows, form), cost) for form, cost in zip(of, costs.weights[rows], strict=True)]
            for rows, of in self.formats.items()
        ]
        if self._bytes is None:
            picked = allocate_within(choices, MOST_DIVERGENCE)
        else:
            picked = allocate(choices, self._bytes)
        forms = {rows: of[i] for (rows, of), i in zip(self.formats.items(), picked, strict=True)}
        for rows in self._rounded_twice(costs.inputs):
            forms[rows] = dataclasses.replace(forms[rows], activations="int8_twice")
        return {
            tensor: _joined(
                [RowFormat(r.first, r.stop, form) for r, form in forms.items() if r.tensor == tensor]
            )
            for tensor in self._columns
        }

    def _rounded_twice(self, costs: Mapping[MatrixRows, float]) -> Iterator[MatrixRows]:
        """Those whose inputs cost most for their number of weights, up to a share of all."""
        left = _ROUNDED_TWICE * sum(self._weights.values())
        for rows in sorted(costs, key=lambda rows: -costs[rows] / self._weights[rows]):
            left -= self._weights[rows]
            if left < 0:
                return
            yield rows

    def _bytes_of(self, bits_per_weight: float, block_size: int) -> int:
        weights = sum(self._weights.values())
        sizes = [[self._size(rows, form) for form in of] for rows, of in self.formats.items()]
        least, most = (8 * sum(map(pick, sizes)) / weights for pick in (min, max))
        if not least <= bits_per_weight <= most:
            raise ConfigError(
                f"{bits_per_weight:g} bits a weight cannot be had with blocks of {block_size}; choose from "
                f"{math.ceil(100 * least) / 100:.2f} to {math.floor(100 * most) / 100:.2f}, or another block "
                "size: longer blocks take fewer bits"
            )
        # No less than the least, which a decimal may round down to.
        return max(math.floor(bits_per_weight * weights / 8), sum(map(min, sizes)))

    def _size(self, rows: MatrixRows, form: WeightFormat) -> int:
        return form.stored_bytes(rows.stop - rows.first, self._columns[rows.tensor])

    def _different(self, name: str, accepted: Sequence[WeightFormat]) -> tuple[WeightFormat, ...]:
        """The accepted formats as this matrix would really store them: short rows take shorter blocks."""
        columns = self._columns[name]
        return tuple(
            dict.fromkeys(dataclasses.replace(form, block_size=form.block_for(columns)) for form in accepted)
        )


def _separate(name: str, config: ModelConfig) -> Iterator[MatrixRows]:
    """The rows of a tensor that may have a format of their own."""
    rows = expected_shapes(config)[name][0]
    if name in _TABLES:
        edges = sorted({0, *(int(rows * share) for share in _TABLE_EDGES), rows})
        yield from (MatrixRows(name, first, stop) for first, stop in itertools.pairwise(edges))
        return
    counts = [rows]
    for fused, parts in config.decoder.fused_rows.items():
        if f".{fused}." in name:
            counts = list(parts.values())
    for first, count in zip(itertools.accumulate([0, *counts]), counts, strict=False):
        yield MatrixRows(name, first, first + count)


def _joined(rows: Sequence[RowFormat]) -> tuple[RowFormat, ...]:
    """The same with neighbours of one format as one."""
    groups = itertools.groupby(rows, key=lambda of: of.form)
    joined = [(form, list(of)) for form, of in groups]
    return tuple(RowFormat(of[0].first, of[-1].stop, form) for form, of in joined)


def _block(block_size: int, times: float) -> int:
    """So many times a block size, within what is multiplied fast."""
    return max(
        min(int(block_size * times), max(block_size, _LONGEST_BLOCK)), min(block_size, _SHORTEST_BLOCK)
    )
