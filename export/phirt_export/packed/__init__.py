"""Checkpoints whose weights somebody has quantized already."""
