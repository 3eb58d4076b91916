"""Mistral: separate projections, at times a sliding window."""

from __future__ import annotations

from phirt_export.published.decoder import read_decoder, separate_parts, sliding_window, text_layout
from phirt_export.published.layout import Layout, Published


def read(published: Published) -> Layout:
    """The layout of a checkpoint of this family."""
    decoder = read_decoder(published, window=sliding_window(published.config))
    return text_layout(published, decoder, separate_parts(decoder))
