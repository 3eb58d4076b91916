"""What a user is told about an answer beside it: that it was cut, and that it calls what nobody offered.

Knows a phirt.Result and its phirt.Chat. Does not know where remarks are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import one_line

if TYPE_CHECKING:
    import phirt

_MOST_NAMES = 8


def remarks(result: phirt.Result, chat: phirt.Chat) -> list[str]:
    """One line for each thing that a user may not see in the answer itself."""
    lines = [why_cut(result, chat.generator.manifest.geometry.context), unoffered_calls(result, chat)]
    return [line for line in lines if line is not None]


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


def unoffered_calls(result: phirt.Result, chat: phirt.Chat) -> str | None:
    """Names of called tools that do not exist, as a model may make them up; None where all were offered."""
    called = list(dict.fromkeys(call.name for call in result.tool_calls if not call.offered))
    if not called:
        return None
    offered = sorted(chat.tools.names) if chat.tools is not None else []
    what = f"offered: {_listed(offered)}" if offered else "no tools were offered"
    return f"the answer calls {_listed(called)}, which was not offered ({what})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(one_line(name)[:80] for name in names[:_MOST_NAMES]) + more
