"""The interactive session of `phirt chat`: messages, slash commands, attachments for the next message.

Knows a phirt.Model and its conversation, and the lines that a person types. Does not know options. An error
costs one line on the screen and nothing else: the conversation and the attachments stay as they were.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .answer import Request, ToolResults, figures, stream_answer
from .arguments import valid_text
from .errors import report
from .lines import LineReader, typed_path
from .output import Output, OutputError, one_line

if TYPE_CHECKING:
    import phirt
    from phirt.encoders.encoder import ImageDetail

_ARGUMENTS = {"F": "a file name", "JSON": "a JSON value"}
LEAVE_HINT = "Ctrl-D or /quit leaves."


class Lines(Protocol):
    """Where lines come from: a terminal, or a list in a test."""

    def read(self, prompt: str) -> str:
        """The next line; EOFError at the end, KeyboardInterrupt on Ctrl-C."""


@dataclass(frozen=True)
class Setup:
    """How the session begins and how it answers; constant while it runs."""

    config: phirt.GenerationConfig
    kept_in: Path | None = None  # saved there after each answer
    image_detail: ImageDetail = "auto"
    stats: bool = False


@dataclass
class Attachments:
    """Media for the next message, in the order in which they were attached."""

    images: list[Path] = field(default_factory=list)
    audio: list[Path] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets them all."""
        self.images.clear()
        self.audio.clear()

    def __str__(self) -> str:
        names = [one_line(path.name) for path in (*self.images, *self.audio)]
        return f"[{', '.join(names)}] " if names else ""


@dataclass(frozen=True)
class Command:
    """One word that begins with a slash. `argument` is one of `_ARGUMENTS`, or empty when it takes none."""

    run: Callable[[str], None]
    argument: str
    help: str


class Session:
    """One conversation at a terminal, from the first prompt to /quit."""

    def __init__(self, model: phirt.Model, chat: phirt.Chat, setup: Setup, out: Output) -> None:
        self._model = model
        self._setup = setup
        self._out = out
        self._attached = Attachments()
        self._last: phirt.Result | None = None
        self._open = True
        self._chat = chat
        self._kept_in = setup.kept_in
        self._commands = {
            "/image": Command(self._image, "F", "attach an image to the next message"),
            "/audio": Command(self._audio, "F", "attach a recording to the next message"),
            "/result": Command(self._result, "JSON", "give what the called tools returned"),
            "/detach": Command(self._detach, "", "forget what is attached"),
            "/reset": Command(self._reset, "", "start the conversation again"),
            "/save": Command(self._save, "F", "write the conversation to a file"),
            "/load": Command(self._load, "F", "go on with a saved conversation"),
            "/stats": Command(self._stats, "", "figures of the last answer"),
            "/help": Command(self._help, "", "this list"),
            "/quit": Command(self._quit, "", "leave (Ctrl-D too; Ctrl-C stops an answer)"),
        }

    def reader(self) -> LineReader:
        """A reader of the terminal that completes this session's commands."""
        with_path = [name for name, command in self._commands.items() if command.argument == "F"]
        return LineReader(self._out, list(self._commands), with_path)

    def run(self, lines: Lines) -> None:
        """Reads and answers until /quit or the end of the lines. Raises OutputError when stdout is gone."""
        self._out.hint(
            f"{one_line(self._model.manifest.name)}: type a message; /help lists the commands. {LEAVE_HINT}"
        )
        if self._chat.messages:
            self._out.hint(f"{len(self._chat.messages)} messages from {self._kept_in}")
        while self._open:
            # Ctrl-C may come again while the first one is being answered.
            with contextlib.suppress(KeyboardInterrupt):
                self._turn(lines)

    def _turn(self, lines: Lines) -> None:
        """Reads a line and does what it says."""
        try:
            line = lines.read(f"{self._attached}> ")
        except EOFError:
            self._out.notice("")
            self._open = False
        except KeyboardInterrupt:
            self._out.notice("")
            self._out.hint(LEAVE_HINT)
        else:
            self._take(line)

    def _take(self, line: str) -> None:
        """One line: a command or a message. Whatever goes wrong is said in one line, and the talk goes on."""
        try:
            if line.startswith("/"):
                self._obey(line.strip())
            elif line.strip() or self._attached.images or self._attached.audio:
                self._send(line.strip())
        except (OutputError, BrokenPipeError):
            raise  # answers would be lost in silence
        except KeyboardInterrupt:
            self._out.notice("")
            self._out.hint(f"stopped. {LEAVE_HINT}")
        except Exception as error:
            report(error, self._out)

    def _send(self, text: str) -> None:
        attached, setup = self._attached, self._setup
        images, audio = tuple(attached.images), tuple(attached.audio)
        self._ask(Request(valid_text(text), setup.config, images, audio, setup.image_detail))
        attached.clear()

    def _ask(self, request: Request | ToolResults) -> None:
        answer = stream_answer(self._chat, request, self._out, self._out.answer_display())
        self._last = answer.result
        if answer.interrupted:
            self._out.hint("stopped; the answer so far stays in the conversation")
        elif answer.result.finish_reason == "length":
            self._out.hint("cut at the limit of new tokens (--max-new-tokens)")
        elif answer.result.finish_reason == "context":
            self._out.hint("the context is full: /reset starts again")
        if answer.result.tool_calls:
            names = ", ".join(one_line(call.name) for call in answer.result.tool_calls)
            self._out.hint(f"calls {names}: /result gives what came back")
        if self._setup.stats:
            self._out.hint(figures(answer.result))
        if self._kept_in is not None:
            self._chat.save(self._kept_in)

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        command = self._commands.get(name)
        if command is None:
            self._out.error(f"unknown command {name}; the commands are {' '.join(self._commands)}")
        elif command.argument and not argument:
            self._out.error(f"{name} needs {_ARGUMENTS[command.argument]}: {name} {command.argument}")
        elif argument and not command.argument:
            self._out.error(f"{name} takes nothing after it")
        else:
            command.run(argument)

    def attach(self, *, image: Path | None = None, audio: Path | None = None) -> None:
        """Reads the file as a request would, so that a bad one shows at once, and attaches it."""
        detail = self._setup.image_detail
        media = self._model.generator.prepare_media(
            [image] if image else [], [audio] if audio else [], detail
        )
        self._attached.images += [image] if image else []
        self._attached.audio += [audio] if audio else []
        path = image or audio
        assert path is not None
        self._out.hint(f"{one_line(path.name)}: {sum(item.num_tokens for item in media)} tokens")

    def _image(self, argument: str) -> None:
        self.attach(image=typed_path(argument))

    def _audio(self, argument: str) -> None:
        self.attach(audio=typed_path(argument))

    def _result(self, argument: str) -> None:
        try:
            value = json.loads(argument)
        except (ValueError, RecursionError) as error:
            self._out.error(f'/result: {error}; accepted: JSON, such as {{"temperature": 21}}')
            return
        one = self._last is not None and len(self._last.tool_calls) == 1
        if not one and not isinstance(value, list):
            self._out.error(
                "/result: accepted is a JSON list with one value for each call of the last answer"
            )
            return
        self._ask(ToolResults([value] if one else value, self._setup.config))

    def _detach(self, argument: str) -> None:
        self._attached.clear()

    def _reset(self, argument: str) -> None:
        self._chat.reset()
        self._attached.clear()
        self._last = None
        kept, self._kept_in = self._kept_in, None
        former = f"; the former one stays in {kept}, /save F keeps this one" if kept else ""
        self._out.hint(f"a new conversation{former}")

    def _save(self, argument: str) -> None:
        path = typed_path(argument)
        self._chat.save(path)
        self._out.hint(f"saved to {path}")

    def _load(self, argument: str) -> None:
        path = typed_path(argument)
        self._chat = self._model.load_chat(path, adapter=self._chat.user_adapter)
        if self._kept_in is not None:
            self._kept_in = path
        self._last = None
        self._out.hint(f"{len(self._chat.messages)} messages from {path}")

    def _stats(self, argument: str) -> None:
        if self._last is None:
            self._out.hint("no answer yet")
        else:
            self._out.hint(figures(self._last))

    def _help(self, argument: str) -> None:
        rows = [
            f"  {f'{name} {command.argument}':<13} {command.help}" for name, command in self._commands.items()
        ]
        self._out.notice("\n".join(rows))

    def _quit(self, argument: str) -> None:
        self._open = False
