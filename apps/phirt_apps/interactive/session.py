"""The turns of an interactive session: messages, commands, attachments for the next message, answers.

Knows a phirt.Model and its conversation, and what a person has typed. Does not know options or keys. An error
costs one line on the screen and nothing else: the conversation and the attachments stay as they were.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import MediaError
from phirt_apps.answer import Request, ToolResults, figures, stream_answer
from phirt_apps.arguments import valid_text
from phirt_apps.errors import report
from phirt_apps.output import Output, OutputError, one_line
from phirt_apps.remarks import unoffered_calls, why_cut

from .commands import ARGUMENTS, BY_NAME, NAMES, help_text
from .dropped import MediaKind, find_media, names_a_file, typed_path, without
from .entry import Message, Mistake, read_entry
from .reader import Reader

if TYPE_CHECKING:
    import phirt
    from phirt.encoders.encoder import ImageDetail
    from phirt_apps.documents.library import Library
    from phirt_apps.documents.prompt import Citation
    from phirt_apps.rendering.display import AnswerDisplay

LEAVE_HINT = "Ctrl-D or /quit leaves."


@dataclass(frozen=True)
class Setup:
    """How the session begins and how it answers; constant while it runs."""

    settings: Mapping[str, Any]
    kept_in: Path | None = None  # saved there after each answer
    image_detail: ImageDetail = "auto"
    stats: bool = False
    embedder: Path | None = None  # finds passages of documents


@dataclass(frozen=True)
class Attachments:
    """Media for the next message, in the order in which they were attached."""

    images: tuple[Path, ...] = ()
    audio: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.images or self.audio)

    def __str__(self) -> str:
        names = [one_line(path.name) for path in (*self.images, *self.audio)]
        return f"[{', '.join(names)}] " if names else ""


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
        self._library: Library | None = None
        self._actions: dict[str, Callable[[str], None]] = {
            "/image": lambda argument: self.attach(image=typed_path(argument)),
            "/audio": lambda argument: self.attach(audio=typed_path(argument)),
            "/docs": self._change_documents,
            "/detach": self._detach,
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._show_stats,
            "/help": lambda argument: self._out.notice(help_text()),
            "/quit": self._quit,
        }

    def run(self, reader: Reader) -> None:
        """Reads and answers until /quit or the end of the input. Raises OutputError when stdout is gone."""
        self._out.hint(
            f"{one_line(self._model.manifest.name)}: type a message; /help lists the commands. {LEAVE_HINT}"
        )
        if self._chat.messages:
            self._out.hint(f"{len(self._chat.messages)} messages from {self._kept_in}")
        try:
            while self._open:
                # Ctrl-C may come again while the first one is being answered.
                with contextlib.suppress(KeyboardInterrupt):
                    self._turn(reader)
        finally:
            self._close_library()

    def attach(self, *, image: Path | None = None, audio: Path | None = None) -> None:
        """Reads the file as a request would, so that a bad one shows at once, and attaches it."""
        if image is not None:
            self._attach([(image, "image")])
        if audio is not None:
            self._attach([(audio, "audio")])

    def use_documents(self, folder: Path) -> None:
        """Answers from the documents in the folder from now on. What was answered from stays so should they
        not be usable.
        """
        from phirt_apps.documents.library import Library  # its database and what reads files take a moment

        library = Library(folder, self._setup.embedder, self._out)
        try:
            library.refresh()
        except BaseException:
            library.close()
            raise
        self._close_library()
        self._library = library

    def _turn(self, reader: Reader) -> None:
        """Reads an entry and does what it says."""
        try:
            typed = reader.read(f"{self._attached}> ")
        except EOFError:
            self._out.notice("")
            self._open = False
        except KeyboardInterrupt:
            self._out.notice("")
            self._out.hint(LEAVE_HINT)
        else:
            self._take(typed, reader)

    def _take(self, typed: str, reader: Reader) -> None:
        """A command or a message. Whatever goes wrong is said in one line, and the talk goes on."""
        attached = self._attached
        try:
            entry = read_entry(typed, NAMES)
            if isinstance(entry, Mistake):
                self._out.error(entry.reason)
            elif isinstance(entry, Message):
                self._say(entry, reader)
            else:
                self._obey(entry.name, entry.argument, reader)
        except (OutputError, BrokenPipeError):
            raise  # answers would be lost in silence
        except KeyboardInterrupt:
            self._attached = attached
            reader.hold()
            self._out.notice("")
            self._out.hint(f"stopped. {LEAVE_HINT}")
        except Exception as error:
            self._attached = attached
            reader.hold()
            report(error, self._out)

    def _say(self, message: Message, reader: Reader) -> None:
        """Sends the message with what is attached and what it names; files alone wait for the next one."""
        text = valid_text(message.text)
        files = [] if message.literal else find_media(text)
        if files:
            self._attach(list(dict.fromkeys((file.path, file.kind) for file in files)))
            text = without(text, files)
            if not text:
                self._out.hint("attached; type a message about it, or press Enter to send it alone")
                return
        elif not message.literal and names_a_file(text):
            raise MediaError(
                f"{text} is neither a picture nor a recording, so it is not attached; write something beside "
                'it, or put it between """, to send its name as text'
            )
        if text or self._attached:
            attached, setup = self._attached, self._setup
            request = Request(text, setup.settings, attached.images, attached.audio, setup.image_detail)
            citations: tuple[Citation, ...] = ()
            if self._library is not None:
                request, citations = self._library.ask(request, self._chat)
            self._ask(request, reader, citations)
            self._attached = Attachments()

    def _ask(
        self, request: Request | ToolResults, reader: Reader, citations: tuple[Citation, ...] = ()
    ) -> None:
        display = _Watched(self._out.answer_display(), reader)
        answer = stream_answer(self._chat, request, self._out, display)
        self._last = answer.result
        if answer.interrupted:
            reader.hold()
            self._out.hint("stopped; the answer so far stays in the conversation")
        elif answer.result.finish_reason == "context":
            self._out.hint("the context is full: /reset starts again")
        elif cut := why_cut(answer.result, self._model.manifest.geometry.context):
            self._out.hint(cut)
        if citations:
            from phirt_apps.documents.prompt import source_lines

            self._out.hint(source_lines(answer.result.text, citations))
        if answer.result.tool_calls:
            names = ", ".join(one_line(call.name) for call in answer.result.tool_calls)
            self._out.hint(f"calls {names}: /result gives what came back")
        if made_up := unoffered_calls(answer.result, self._chat):
            self._out.hint(made_up)
        if self._setup.stats:
            self._out.hint(figures(answer.result, self._model.placements))
        if self._kept_in is not None:
            self._chat.save(self._kept_in)

    def _obey(self, name: str, argument: str, reader: Reader) -> None:
        command = BY_NAME[name]
        if command.argument and not argument:
            self._out.error(f"{name} needs {ARGUMENTS[command.argument]}: {name} {command.argument}")
        elif argument and not command.argument:
            self._out.error(f"{name} takes nothing after it; /{name} would send it as a message")
        elif name == "/result":
            self._give_results(argument, reader)
        else:
            self._actions[name](argument)

    def _attach(self, files: Sequence[tuple[Path, MediaKind]]) -> None:
        """Attaches all of the files, or none."""
        costs = []
        for path, kind in files:
            sources = ([path], []) if kind == "image" else ([], [path])
            media = self._model.generator.prepare_media(*sources, self._setup.image_detail)
            costs.append(sum(item.num_tokens for item in media))
        self._attached = Attachments(
            (*self._attached.images, *(path for path, kind in files if kind == "image")),
            (*self._attached.audio, *(path for path, kind in files if kind == "audio")),
        )
        for (path, _), cost in zip(files, costs, strict=True):
            self._out.hint(f"{one_line(path.name)}: {cost} tokens")

    def _give_results(self, argument: str, reader: Reader) -> None:
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
        self._ask(ToolResults([value] if one else value, self._setup.settings), reader)

    def _change_documents(self, argument: str) -> None:
        if argument == "off":
            self._close_library()
        else:
            self.use_documents(typed_path(argument))

    def _close_library(self) -> None:
        library, self._library = self._library, None
        if library is not None:
            library.close()

    def _detach(self, argument: str) -> None:
        self._attached = Attachments()

    def _reset(self, argument: str) -> None:
        self._chat.reset()
        if self._library is not None:
            self._library.begin_again()
        self._attached = Attachments()
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

    def _show_stats(self, argument: str) -> None:
        if self._last is None:
            self._out.hint("no answer yet")
        else:
            self._out.hint(figures(self._last, self._model.placements))

    def _quit(self, argument: str) -> None:
        self._open = False


@dataclass(frozen=True)
class _Watched:
    """A display that lets the reader take in what is typed between two pieces."""

    display: AnswerDisplay
    reader: Reader

    def write(self, piece: str) -> None:
        """Shows the piece."""
        self.reader.poll()
        self.display.write(piece)

    def break_line(self) -> None:
        """Begins a new line."""
        self.display.break_line()

    def finish(self) -> None:
        """Ends the answer."""
        self.display.finish()
