"""An answer's token ids: calls of tools, whose marks are control tokens, then its text.

Knows a turn and the runtime's tokenizer. Knows nothing of templates or models.
"""

from __future__ import annotations

import json

from phirt.errors import ConfigError
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import CALL_CLOSE, CALL_OPEN
from phirt_train.data.records import TrainingMessage


def answer_ids(tokenizer: Tokenizer, turn: TrainingMessage) -> tuple[int, ...]:
    """The ids of a turn of the assistant's.

    Raises:
        ConfigError: it calls tools, and the tokenizer has no marks for that.
    """
    if not turn.tool_calls:
        return tuple(tokenizer.encode_content(turn.content))
    marks = [tokenizer.id_of(name) for name in (CALL_OPEN, CALL_CLOSE)]
    if None in marks:
        raise ConfigError(f"the tokenizer has no {CALL_OPEN} and {CALL_CLOSE}, which calls of tools need")
    opening, closing = (mark for mark in marks if mark is not None)
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.tool_calls]
    text = json.dumps(calls, ensure_ascii=False)
    ids = [opening, *tokenizer.encode_content(text), closing]
    return (*ids, *(tokenizer.encode_content(turn.content) if turn.content else ()))
