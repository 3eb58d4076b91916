"""Phi-3-mini, Phi-4-mini and Phi-4 14B: fused projections."""

from __future__ import annotations

from phirt_export.published.decoder import fused_parts, read_decoder, sliding_window, text_layout
from phirt_export.published.layout import Layout, Published


def read(published: Published) -> Layout:
    """The layout of a checkpoint of this family."""
    decoder = read_decoder(published, window=sliding_window(published.config))
    return text_layout(published, decoder, fused_parts)
