"""How matrices are stored: the formats that an export may ask for, and what each takes.

Knows bits, blocks, methods and sizes. Knows no weights and no nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from phirt.errors import ConfigError
from phirt_export.graphs.stored_blocks import Activations
from phirt_quant.blockwise import BITS, METHODS, ScaleType, block_within, check_format, num_blocks

FLOAT_BITS = 32
# The method that looks at calibration data; `blockwise` has those that look at weights alone.
GPTQ = "gptq"
ACCEPTED_METHODS = (*METHODS, GPTQ)
# What a matrix has whose codes the checkpoint holds and which keeps them; nobody asks for it by name.
KEPT = "kept"
ACCEPTED_BITS = (*BITS, FLOAT_BITS)


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """How matrices are stored: 4, 6 or 8 bits in blocks of `block_size` along the input dimension, or float32
    (32). `method` is one of ACCEPTED_METHODS; or KEPT, for which the checkpoint says in what type its scales
    are, and whether blocks have minimums. `activations`: see `stored_blocks`.
    """

    bits: int
    block_size: int = 32
    method: str = "rtn"
    scale_type: ScaleType = "float32"
    has_minimums: bool = False
    activations: Activations = "int8"

    def __post_init__(self) -> None:
        if self.bits not in ACCEPTED_BITS:
            accepted = ", ".join(str(bits) for bits in ACCEPTED_BITS)
            raise ConfigError(
                f"{self.bits} bits a weight are not supported; choose from {accepted} (32 = unquantized)"
            )
        if self.method not in (*ACCEPTED_METHODS, KEPT):
            accepted = ", ".join(ACCEPTED_METHODS)
            raise ConfigError(f"quantization method {self.method!r} is unknown; choose from {accepted}")
        if self.is_quantized:
            check_format(self.bits, self.block_size)

    @property
    def is_quantized(self) -> bool:
        """Whether matrices become codes and scales."""
        return self.bits != FLOAT_BITS

    def block_for(self, columns: int) -> int:
        """Block size for rows of `columns` elements: the one, up to `block_size`, that stores a row in the
        fewest bytes. Short rows (a LoRA rank) get a smaller one where padding would cost more than scales.
        """

        # MatMulNBits takes powers of two; of two that cost the same, the larger comes first.
        halvings = (self.block_size // block_within(self.bits, 0)).bit_length()
        return min(
            (self.block_size >> n for n in range(halvings)), key=lambda block: self._row_bytes(columns, block)
        )

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of codes and scales of a quantized matrix."""
        return rows * self._row_bytes(columns, self.block_for(columns))

    def _row_bytes(self, columns: int, block: int) -> int:
        scales = np.dtype(self.scale_type).itemsize * (1 + self.has_minimums)
        return num_blocks(columns, block) * (block * self.bits // 8 + scales)


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """The format of rows first..stop-1 of a matrix."""

    first: int
    stop: int
    form: WeightFormat


# The formats of matrices by tensor: those of all rows, in order.
Chosen = Mapping[str, tuple[RowFormat, ...]]
