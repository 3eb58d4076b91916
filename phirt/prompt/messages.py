"""Turns of a conversation and their media, as data.

Knows what a turn holds. Knows nothing of templates, tokenizers, encoders or files.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Role = Literal["system", "user", "assistant", "tool", "tool_response"]
Kind = Literal["image", "audio"]
Rows = npt.NDArray[np.float32]


@dataclasses.dataclass(eq=False)
class Media:
    """One picture or recording in a conversation.

    `key` names the content. `inputs` is what the encoder takes: for images dropped once they are encoded, for
    audio kept (float32 [frames, mels]), because another route needs another projector. `features` holds
    float32 [num_tokens, hidden] by projector.
    """

    kind: Kind
    key: str
    num_tokens: int
    inputs: Any
    features: dict[str, Rows] = dataclasses.field(default_factory=dict)

    @property
    def span_key(self) -> str:
        """The name of this content in the engine's cache."""
        return f"{self.kind}:{self.key}"


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
    """One turn. `media` stands before the text. `ids` are an answer's generated ids, where they stand for its
    text.
    """

    role: Role
    content: str
    media: tuple[Media, ...] = ()
    ids: tuple[int, ...] | None = None
