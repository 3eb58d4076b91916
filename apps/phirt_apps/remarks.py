"""What a user is told about an answer beside it: that it was cut, and where.

Knows a phirt.Result. Does not know where remarks are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import phirt


def why_cut(result: phirt.Result, context: int) -> str | None:
    """Why the answer is not whole, and what helps; None where the model ended it or a user stopped it."""
    if result.finish_reason == "length":
        return f"cut at {result.usage.new_tokens} new tokens; --max-new-tokens N allows more"
    if result.finish_reason == "context":
        what = "cut" if result.text else "empty"
        return (
            f"{what}, as the model's context of {context} tokens is full; shorten the prompt or start a new "
            "conversation"
        )
    return None
