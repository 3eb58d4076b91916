"""Turns of a conversation and their media, as data.

Knows what a turn holds. Knows nothing of templates, tokenizers, encoder kinds or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import Modality

Role = Literal["system", "user", "assistant", "tool", "tool_response"]
Features = npt.NDArray[np.float32]
Inputs = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(eq=False)
class Media:
    """One picture or recording in a conversation.

    Attributes:
        encoder: the name of the bundle's encoder that it goes through.
        modality: what it is.
        key: names the content as that encoder sees it.
        num_tokens: rows of its features, and placeholders in a prompt.
        inputs: what the encoder's graph takes, by name; None once the features of all projectors are known.
        features: float32 [num_tokens, hidden] by projector.
        from_file: whether it was restored from a saved conversation. What such a file says is believed within
            its own conversation only.
    """

    encoder: str
    modality: Modality
    key: str
    num_tokens: int
    inputs: Inputs | None
    features: dict[str, Features] = dataclasses.field(default_factory=dict)
    from_file: bool = False

    def span_key(self, projector: str) -> str:
        """The name of this content under a projector, in the engine's cache."""
        return f"{self.encoder}:{projector}:{self.key}"


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
    """One turn. `media` stands before the text. `token_ids` are an answer's generated ids, where they stand
    for its text.
    """

    role: Role
    content: str
    media: tuple[Media, ...] = ()
    token_ids: tuple[int, ...] | None = None
