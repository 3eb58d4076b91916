"""Llama 2 and 3: separate projections, biases where the configuration asks."""

from __future__ import annotations

from phirt_export.published.decoder import flag, read_decoder, separate_parts, text_layout
from phirt_export.published.layout import Layout, Published
from phirt_export.reference.config import Projection


def read(published: Published) -> Layout:
    """The layout of a checkpoint of this family."""
    config = published.config
    biases: tuple[Projection, ...] = ("qkv_proj", "o_proj") if flag(config, "attention_bias") else ()
    biases += ("gate_up_proj", "down_proj") if flag(config, "mlp_bias") else ()
    decoder = read_decoder(published, biases)
    return text_layout(published, decoder, separate_parts(decoder))
