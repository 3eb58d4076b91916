"""The conversation that a command goes on with: from a file, or new; and the file's place, kept meanwhile.

Knows a phirt.Model and the file that `--conversation` names. Does not know how answers are shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import ConversationError

from .errors import UsageError
from .output import Output

if TYPE_CHECKING:
    import phirt


@contextlib.contextmanager
def held(path: Path | None, out: Output) -> Iterator[None]:
    """Keeps the place of the conversation `path` for this process until the block ends; waits, and says so,
    while another one has it. To be entered before anything is loaded or answered.

    Raises:
        ConversationError: nothing can be saved there.
    """
    if path is None:
        yield
        return
    if not path.parent.is_dir():
        raise ConversationError(
            f"{path.parent} is not a folder, so {path.name} cannot be saved there; make it first"
        )
    from phirt.chat.place import reserve

    def say() -> None:
        out.hint(f"another phirt is using {path}: waiting until it has ended")

    with reserve(path, wait=True, on_wait=say):
        yield


def open_chat(
    model: phirt.Model, path: Path | None, system: str | None, tools: list[dict[str, Any]] | None
) -> phirt.Chat:
    """The conversation in the file `path`; a new one without a path, or where there is no such file yet.
    The adapter that the model was loaded with is used in either, if there is one.

    Raises:
        UsageError: a system text or tools are given for a conversation that has begun.
        ConversationError: the file is no conversation of this model.
    """
    adapter = next(iter(model.adapters), None)
    if path is None or not path.exists():
        return model.chat(system=system, tools=tools, adapter=adapter)
    if system is not None or tools is not None:
        raise UsageError(
            f"--system and --tools are for a new conversation, and {path} holds one; leave them out"
        )
    return model.load_chat(path, adapter=adapter)
