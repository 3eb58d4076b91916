"""What an export is asked for, and what a checkpoint holds, as one plan: formats of the parts, what is kept,
and who chooses bits.

Knows the defaults. Knows nothing of calibration or of how weights are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from phirt.errors import ConfigError
from phirt_export.bit_budget import BitBudget, is_table
from phirt_export.checkpoint import Checkpoint
from phirt_export.formats import BundleFormats, choose_formats, default_block_size, default_method
from phirt_export.graphs.weight_format import GPTQ, Chosen, RowFormat, WeightFormat

# What a matrix has whose bits are chosen, unless it is more.
_CHOSEN_BITS = 4


@dataclasses.dataclass(frozen=True)
class FormatPlan:
    """The formats of an export.

    Attributes:
        formats: those of the parts.
        budget: chooses the formats of projections and tables one by one; None where all are alike, or keep
            what the checkpoint holds.
        own: formats that the checkpoint itself gives tensors; empty where all is quantized anew.
    """

    formats: BundleFormats
    budget: BitBudget | None
    own: Mapping[str, WeightFormat]

    @property
    def needs_moments(self) -> bool:
        """Whether a part is quantized by the moments of its inputs."""
        return any(form.method == GPTQ and form.is_quantized for form in self.formats.parts)

    def chosen_by(self, checkpoint: Checkpoint) -> Chosen:
        """The checkpoint's own formats, each of all rows."""
        return {name: (RowFormat(0, checkpoint.shape(name)[0], form),) for name, form in self.own.items()}


def plan_formats(
    checkpoint: Checkpoint,
    *,
    bits: int | None,
    block_size: int | None,
    embedding_bits: int | None,
    adapter_bits: int,
    encoder_bits: int,
    method: str | None,
    bits_per_weight: float | None,
) -> FormatPlan:
    """The plan for settings of `export_bundle`.

    Raises:
        ConfigError: settings that are not supported, or not together.
    """
    config = checkpoint.config
    block_size = default_block_size(config) if block_size is None else block_size
    keeps = bits is None and bits_per_weight is None and bool(checkpoint.kept or checkpoint.finer)
    chooses = bits is None and embedding_bits is None and not keeps
    bits = _CHOSEN_BITS if bits is None else bits
    if method is None:
        method = "mse" if keeps else default_method(config, bits)
    formats = choose_formats(bits, block_size, embedding_bits, adapter_bits, encoder_bits, method)
    if bits_per_weight is not None and (bits != _CHOSEN_BITS or embedding_bits is not None):
        raise ConfigError(
            "bits_per_weight chooses between 4, 6 and 8 bits for projections and token table; leave bits at "
            "4 and embedding_bits out, or give no bits_per_weight"
        )
    budget = None
    if bits_per_weight is not None or chooses:
        budget = BitBudget(bits_per_weight, block_size, method, config)
    held = {**checkpoint.finer, **checkpoint.kept} if keeps else {}
    own = {name: form for name, form in held.items() if embedding_bits is None or not is_table(name)}
    return FormatPlan(formats, budget, own)
