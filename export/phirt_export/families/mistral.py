"""Mistral: separate projections, at times a sliding window."""

from __future__ import annotations

from phirt_export.published.decoder import read_decoder, separate_parts, sliding_window, text_layout
from phirt_export.published.layout import Layout, Published

_CLASS_WINDOW = 4096  # of transformers' class, where config.json has no such key


def read(published: Published) -> Layout:
    """The layout of a checkpoint of this family."""
    decoder = read_decoder(published, window=sliding_window(published.config, _CLASS_WINDOW))
    return text_layout(published, decoder, separate_parts(decoder))
