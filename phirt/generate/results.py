"""What an answer is when it has ended, and what it took: data that nothing can change.

Knows the names of counts and times. Knows nothing of how they come about.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from typing import Any, Literal

from phirt.errors import SchemaError
from phirt.prompt.tools import ToolCall

FinishReason = Literal["stop", "length", "context", "cancelled"]

_CUT_JSON = {
    "length": "the answer was cut at max_new_tokens, so it is no whole JSON; allow more tokens",
    "context": "the answer was cut where the context is full, so it is no whole JSON; shorten the prompt",
    "cancelled": "the answer was cancelled, so it is no whole JSON; read it to its end",
}


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one answer.

    Of `prompt_tokens`, `cached_tokens` were not run again, and `image_tokens` and `audio_tokens` are media.
    Of speculation, `drafted_tokens` were run before they were chosen, and `accepted_tokens` are the right
    ones of them, each of which spared a step.
    """

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    audio_tokens: int
    new_tokens: int
    drafted_tokens: int
    accepted_tokens: int


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds of work on one answer, without what its reader takes between pieces: reading and encoding
    media, running the prompt, all until the first token, decoding after it, everything.
    """

    media: float
    prefill: float
    first_token: float
    decode: float
    total: float


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished answer.

    `token_ids` are the generated ids without the end token. `adapter` is the bundle's own under which the
    answer was made ("none" is the base model), `user_adapter` the one that the chat was opened with, beside
    it. `finish_reason` says why it ended: at its end token or a stop string, at
    `max_new_tokens`, at a full context, or because it was cancelled.
    """

    text: str
    token_ids: tuple[int, ...] = dataclasses.field(repr=False)
    prompt_token_ids: tuple[int, ...] = dataclasses.field(repr=False)
    adapter: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tool_calls: tuple[ToolCall, ...]
    user_adapter: str | None = None

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding: tokens after the first by the time they took; 0 where there are none."""
        steps = len(self.token_ids) - 1
        return steps / self.timings.decode if steps > 0 and self.timings.decode > 0 else 0.0

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended before the model ended it: at a limit, or because it was cancelled."""
        return self.finish_reason != "stop"

    def json(self) -> Any:
        """What an answer says that had a JSON schema, in Python's values. Raises SchemaError where it was cut
        before its end, or is no JSON.
        """
        try:
            return json.loads(self.text, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            if self.is_cut:
                raise SchemaError(_CUT_JSON[self.finish_reason]) from error
            raise SchemaError(f"the answer is no JSON: {error}; give the request a schema") from error

    def _repr_html_(self) -> str:
        """The answer in a notebook; whatever a model writes is shown and never interpreted."""
        figures = (
            f"{self.usage.new_tokens} tokens, {self.tokens_per_second:.1f} tokens/s, {self.finish_reason}"
        )
        return (
            f'<div style="white-space: pre-wrap">{html.escape(self.text)}</div>'
            f"<small>{html.escape(figures)}</small>"
        )


def _finite(text: str) -> float:
    """Raises ValueError for a number that Python has only as infinity, which no JSON can be written with."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return value
