"""A session from its first moment: the terminal, the model, the reader, and all of it put back at the end.

Knows which parts a session is made of. Does not know options.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output

from .commands import WITH_PATH, WORDS
from .reader import LineReader, Reader
from .session import Session, Setup
from .terminal import QuietTerminal, session_terminal

if TYPE_CHECKING:
    import phirt


def run_session(
    open_chat: Callable[[], tuple[phirt.Model, phirt.Chat]],
    setup: Setup,
    out: Output,
    *,
    images: Sequence[Path] = (),
    audio: Sequence[Path] = (),
    history: bool = False,
    docs: Path | None = None,
) -> None:
    """Holds a conversation; the media belong to its first message. `history` keeps what is typed in a file.
    `docs` is the folder of documents that is answered from.

    The terminal is quiet from the beginning: what is typed while the model loads stands at the first prompt.
    """
    terminal = session_terminal()
    with terminal or contextlib.nullcontext():
        session = Session(*open_chat(), setup, out)
        if docs is not None:
            session.use_documents(docs)
        for path in images:
            session.attach(image=path)
        for path in audio:
            session.attach(audio=path)
        with interrupts.session():
            session.run(_reader(terminal, out, history=history))


def _reader(terminal: QuietTerminal | None, out: Output, *, history: bool) -> Reader:
    if terminal is None:
        return LineReader(out.prompt)
    from prompt_toolkit.history import InMemoryHistory  # takes as long as all else

    from .editor import Editor
    from .history import open_history

    return Editor(terminal, WORDS, WITH_PATH, open_history(out.hint) if history else InMemoryHistory())
