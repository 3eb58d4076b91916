"""The conversation that a command goes on with: from a file, or new.

Knows a phirt.Model and the file that `--conversation` names. Does not know how answers are shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import ConversationError

from .errors import UsageError

if TYPE_CHECKING:
    import phirt


def open_chat(
    model: phirt.Model, path: Path | None, system: str | None, tools: list[dict[str, Any]] | None
) -> phirt.Chat:
    """The conversation in the file `path`; a new one without a path, or where there is no such file yet.
    The adapter that the model was loaded with is used in either, if there is one.

    Raises:
        UsageError: a system text or tools are given for a conversation that has begun.
        ConversationError: the file is no conversation of this model, or its folder does not exist.
    """
    adapter = next(iter(model.adapters), None)
    if path is None or not path.exists():
        if path is not None and not path.parent.is_dir():
            raise ConversationError(
                f"{path.parent} is not a folder, so {path.name} cannot be saved there; make it first"
            )
        return model.chat(system=system, tools=tools, adapter=adapter)
    if system is not None or tools is not None:
        raise UsageError(
            f"--system and --tools are for a new conversation, and {path} holds one; leave them out"
        )
    return model.load_chat(path, adapter=adapter)
