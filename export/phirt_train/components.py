"""The components of a model that people speak of, and the parameters of each.

Knows parameters' names. Knows nothing of their values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_LORA = re.compile(r"\.lora_[AB]\.(\w+)\.")
_EXTEND = "model.embed_tokens_extend."
_PARTS = (
    ("image_embed.img_processor.", "vision encoder"),
    ("image_embed.", "vision projector"),
    ("audio_embed.audio_projection.", "audio projector"),
    ("audio_embed.", "audio encoder"),
    ("photo_embed.trunk.", "vision encoder"),
    ("photo_embed.", "vision projector"),
    ("sound_embed.encoder.", "audio encoder"),
    ("sound_embed.", "audio projector"),
)


def component_of(name: str) -> str:
    """What a parameter belongs to: "decoder", "vision encoder", "LoRA speech", …; "head" for what is dropped
    after its stage.
    """
    if name.startswith("head."):
        return "head"
    if (lora := _LORA.search(name)) is not None:
        return f"LoRA {lora[1]}"
    if name.startswith(_EXTEND):
        below = name.removeprefix(_EXTEND)
        return next((component for start, component in _PARTS if below.startswith(start)), "other towers")
    return "decoder"


def by_component(sizes: Mapping[str, int], names: Iterable[str] | None = None) -> dict[str, int]:
    """How many weights each component has, of all parameters or of those named."""
    counts: dict[str, int] = {}
    for name in sizes if names is None else names:
        component = component_of(name)
        counts[component] = counts.get(component, 0) + sizes[name]
    return counts
