"""The conversation format of a model that is trained from nothing, unless its recipe says otherwise: Phi-4's.

Knows special tokens and a chat template. Knows nothing of how text is encoded.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from phirt.fields import Length

_Tokens = Annotated[tuple[str, ...], Length(1, 1024)]
_PHI4_TOKENS = (
    "<|endoftext|>",
    "<|endoftext10|>",
    "<|endoftext11|>",
    "<|assistant|>",
    "<|end|>",
    "<|user|>",
    "<|system|>",
    "<|tool|>",
    "<|/tool|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<|tool_response|>",
)


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Tokens that no text yields, first in the vocabulary and in this order, and what some of them mean.

    Attributes:
        tokens: all of them, those that the chat template writes included.
        bos, pad: begins a text; fills what is padded.
        eos: end an answer.
        image, audio: stand for a row of features.
    """

    tokens: _Tokens = _PHI4_TOKENS
    bos: str = "<|endoftext|>"
    pad: str = "<|endoftext|>"
    eos: Annotated[tuple[str, ...], Length(1, 64)] = ("<|endoftext|>", "<|end|>")
    image: str = "<|endoftext10|>"
    audio: str = "<|endoftext11|>"

    def __post_init__(self) -> None:
        if len(set(self.tokens)) < len(self.tokens) or not all(self.tokens):
            raise ValueError("tokens holds one twice, or an empty one")
        for name in (self.bos, self.pad, *self.eos, self.image, self.audio):
            if name not in self.tokens:
                raise ValueError(f"{name!r:.80} is a special token, and not among tokens")

    def id_of(self, name: str) -> int:
        """The id of one of the tokens."""
        return self.tokens.index(name)


SPECIAL_TOKENS = SpecialTokens()

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' and message.get('tools') -%}"
    "{{ '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' }}"
    "{%- else -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- else -%}{{ '<|endoftext|>' }}{%- endif -%}"
)
