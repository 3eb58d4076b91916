"""The editor in which a person types on a terminal: several lines, pasted text, history, completion.

Knows prompt_toolkit and keys. Does not know what commands do.

Enter sends; Alt-Enter and Ctrl-J begin a new line, and so does Enter between triple quotes. Pasted text is
one text whatever it holds. What is typed while nobody reads is kept: with Enter at its end it is sent next.
"""

from __future__ import annotations

import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from .completion import completions
from .entry import is_open
from .terminal import QuietTerminal

_PROMPT_STYLE = "bold fg:ansidefault"  # with a colour the space is written too, which programs wait for
_TOGETHER = 0.03  # seconds: nobody presses two keys so fast, but programs that type do


class Editor:
    """Reads messages from the terminal. Tab completes `commands`, and files behind those in `with_path`."""

    def __init__(
        self,
        terminal: QuietTerminal,
        commands: Sequence[str],
        with_path: Sequence[str],
        history: History,
        keyboard: Input | None = None,
        screen: Output | None = None,
    ) -> None:
        self._terminal = terminal
        self._keyboard = keyboard or create_input(terminal.keyboard)
        self._last_insertion = -1.0
        screen = screen or create_output(terminal.screen)
        if isinstance(screen, Vt100_Output):
            screen.enable_cpr = False  # not needed here, and an answer that comes late would be read as keys
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=history,
            completer=_Completer(commands, with_path),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            prompt_continuation=lambda width, number, wrapped: " " * width,
            enable_suspend=True,
            key_bindings=self._bindings(),
            include_default_pygments_style=False,
            input=self._keyboard,
            output=screen,
        )
        self._session.default_buffer.on_text_insert += self._on_insertion

    def read(self, prompt: str) -> str:
        """The next message, which may have several lines."""
        try:
            text = self._session.prompt([(_PROMPT_STYLE, prompt)])
        finally:
            self._terminal.quiet()
        self.poll()
        return text

    def poll(self) -> None:
        """Takes in what was typed, before the system's buffer is full and Ctrl-C is not seen any more."""
        keys = get_typeahead(self._keyboard)
        if sys.platform != "win32":  # the console keeps key presses as long as need be
            while not self._keyboard.closed and select.select([self._keyboard.fileno()], [], [], 0)[0]:
                keys += self._keyboard.read_keys()
        pressed = [index for index, key in enumerate(keys) if key.key == Keys.ControlC]
        store_typeahead(self._keyboard, keys[pressed[-1] + 1 :] if pressed else keys)
        if pressed:  # in the moment in which the terminal still took it for a key like any other
            signal.raise_signal(signal.SIGINT)

    def hold(self) -> None:
        """What has been typed will stand at the next prompt, and no Enter in it sends it."""
        self.poll()
        keys = get_typeahead(self._keyboard)
        while keys and keys[-1].key in (Keys.ControlM, Keys.ControlJ):
            keys.pop()
        newline = KeyPress(Keys.BracketedPaste, "\n")
        kept = [newline if key.key in (Keys.ControlM, Keys.ControlJ) else key for key in keys]
        store_typeahead(self._keyboard, kept)

    def _on_insertion(self, buffer: Buffer) -> None:
        self._last_insertion = time.monotonic()

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)  # and not searching

        @bindings.add("enter", filter=typing)
        def enter(event: KeyPressEvent) -> None:
            if is_open(event.current_buffer.text):
                event.current_buffer.insert_text("\n")
            else:
                event.current_buffer.validate_and_handle()

        @bindings.add("c-j", filter=typing)
        def newline(event: KeyPressEvent) -> None:
            # Programs that type for a person, and terminals before there is an editor, send this for Enter.
            together = time.monotonic() - self._last_insertion < _TOGETHER
            if together or not event.current_buffer.text:
                enter(event)
            else:
                event.current_buffer.insert_text("\n")

        @bindings.add("escape", "enter", filter=typing)
        @bindings.add("escape", "c-j", filter=typing)
        def newline_always(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        return bindings


class _Completer(Completer):
    """The completions of the text before the cursor."""

    def __init__(self, commands: Sequence[str], with_path: Sequence[str]) -> None:
        self._commands = commands
        self._with_path = with_path

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        for found in completions(document.current_line_before_cursor, self._commands, self._with_path):
            yield Completion(found.text, start_position=-found.replaced, display=found.label)
