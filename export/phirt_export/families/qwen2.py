"""Qwen2 and 2.5: separate projections; query, key and value have biases."""

from __future__ import annotations

from phirt_export.published.decoder import read_decoder, refuse_partial_window, separate_parts, text_layout
from phirt_export.published.layout import Layout, Published


def read(published: Published) -> Layout:
    """The layout of a checkpoint of this family."""
    refuse_partial_window(published.config)
    decoder = read_decoder(published, ("qkv_proj",))
    return text_layout(published, decoder, separate_parts(decoder))
