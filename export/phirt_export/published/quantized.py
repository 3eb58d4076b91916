"""Checkpoints whose weights are codes already.

Knows how config.json says so. Knows nothing of codes.
"""

from __future__ import annotations

from pathlib import Path

from phirt.errors import ConfigError
from phirt.fields import Fields


def refuse_quantized(folder: Path, config: Fields) -> None:
    """Raises ConfigError for a checkpoint that somebody has quantized."""
    if not config.has("quantization_config"):
        return
    method = config.child("quantization_config").raw("quant_method")
    named = f" ({method[:40]})" if isinstance(method, str) else ""
    raise ConfigError(
        f"{folder} is already quantized{named}, which is not read; export the original that it was made from"
    )
