"""Qwen3: separate projections; queries and keys are normalised head by head."""

from __future__ import annotations

from phirt_export.published.decoder import (
    flag,
    read_decoder,
    refuse_partial_window,
    separate_parts,
    text_layout,
)
from phirt_export.published.layout import Layout, Published
from phirt_export.reference.config import Projection


def read(published: Published) -> Layout:
    """The layout of a checkpoint of this family."""
    refuse_partial_window(published.config)
    is_biased = flag(published.config, "attention_bias")
    biases: tuple[Projection, ...] = ("qkv_proj", "o_proj") if is_biased else ()
    decoder = read_decoder(published, biases, qk_norm=True)
    return text_layout(published, decoder, separate_parts(decoder))
