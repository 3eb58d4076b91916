"""Sizes and bits of graphs of one size, as a target has them and as an export asks for them.

Knows what fits together. Knows nothing of graphs.
"""

from __future__ import annotations

import dataclasses

from phirt.bundle.manifest import StaticShapes
from phirt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class StaticOptions:
    """What an export asks for; None for what the target says: bits of weights, tokens of one run of a
    prefill, positions of keys and values; and tokens of one window of a recording, None for as many as
    attend to each other.
    """

    bits: int = 8
    prefill: int | None = None
    window: int | None = None
    audio_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class StaticDefaults:
    """What a target says."""

    prefill: int = 64
    window: int = 1024

    def shapes(self, options: StaticOptions, original_context: int) -> StaticShapes:
        """The sizes, within the context that the decoder's rotary tables are made for.

        Raises:
            ConfigError: they are none, or do not fit.
        """
        if options.bits not in (4, 8):
            raise ConfigError(
                f"weights of {options.bits} bits cannot be stored for this target; choose 4 or 8"
            )
        window = options.window or min(self.window, original_context)
        prefill = options.prefill or min(self.prefill, window)
        if not 0 < prefill <= window <= original_context:
            raise ConfigError(
                f"graphs of {prefill} tokens over a window of {window} positions cannot be built; the window "
                f"has at most {original_context}, the model's original context, and a prefill no more than it"
            )
        return StaticShapes(prefill, window)
