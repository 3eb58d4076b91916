"""The runtime behind the window: loads models, answers, keeps conversations, in a thread of its own.

Knows phirt and the files of conversations. Knows no widget: the window asks by signals that are connected to
the methods here, and everything comes back as signals. Each job ends with `idle`, whatever happened; what
failed is one line in `failed`. Whoever wants an answer stopped sets its question's `cancel`, from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Signal

from phirt.errors import BundleError, ConversationError, PhirtError, RequestCancelledError, out_of_memory
from phirt_apps.desktop import conversations, markdown
from phirt_apps.desktop.attachments import Attachment
from phirt_apps.errors import description
from phirt_apps.output import one_line
from phirt_apps.remarks import remarks

if TYPE_CHECKING:
    import phirt

SHOWN_EVERY = 0.04  # seconds; a window that is told more often would only work more

_log = logging.getLogger("phirt.desktop")


@dataclass(frozen=True)
class Setup:
    """What every answer has in common, and where conversations are kept."""

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    provider: str | None = None
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """One turn of the person's, and what stops its answer."""

    text: str
    attachments: tuple[Attachment, ...] = ()
    cancel: threading.Event = field(default_factory=threading.Event)

    def sources(self, kind: str) -> list[Any]:
        """What the runtime takes for the pictures, or the recordings."""
        return [one.source for one in self.attachments if one.kind == kind]


@dataclass(frozen=True)
class Turn:
    """One turn of a restored conversation: what was said, and an answer's HTML in pieces."""

    role: str
    text: str
    media: tuple[str, ...]
    html: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How an answer ended: its figures, and what is to be said beside it."""

    tokens: int
    tokens_per_second: float
    first_token: float
    stopped: bool
    remarks: tuple[str, ...]


class Runtime(QObject):
    """One model and one conversation. Its methods run in its thread, one after the other."""

    listed = Signal(object)  # list[Choice]
    kept = Signal(object, object)  # list[Saved], the path of the conversation that is open
    status = Signal(str)
    loaded = Signal(object)  # Choice; None where the one before is gone and no other has come
    opened = Signal(object)  # list[Turn]
    written = Signal(object, str)  # list of settled HTML, open HTML
    speed = Signal(float)  # pieces a second so far
    answered = Signal(object)  # Outcome
    withdrawn = Signal()  # the question did not count: the conversation is as it was before it
    failed = Signal(str)
    idle = Signal()
    closed = Signal()

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._setup = setup
        self._model: phirt.Model | None = None
        self._chat: phirt.Chat | None = None
        self._path: Path | None = None
        self._place = contextlib.ExitStack()  # keeps the conversation's file for this process
        self._choices: list[conversations.Choice] = []

    def load(self, model: Path | None) -> None:
        """Loads a model by its folder or name, None for the embedded one, and begins a conversation."""
        with self._job():
            self._list()
            self._load(model)
            self._begin()

    def begin(self) -> None:
        """A new conversation."""
        with self._job():
            self._begin()

    def open(self, saved: conversations.Saved) -> None:
        """Goes on with a kept conversation, with the model that it was held with."""
        with self._job():
            try:
                self._use_model_of(saved)
                chat = self._chat_of(saved)
            except Exception:
                if self._model is not None and self._chat is None:
                    self._begin()  # the model that was loaded for it can be asked
                raise
            self.opened.emit(_turns(chat))
            self._list()

    def delete(self, saved: conversations.Saved) -> None:
        """Deletes a kept conversation; where it is the open one, a new one begins."""
        with self._job():
            if saved.path == self._path:
                self._begin()
            conversations.delete(saved.path)
            self._list()

    def ask(self, question: Question) -> None:
        """Answers, and keeps the conversation."""
        with self._job():
            if self._chat is None:
                self.withdrawn.emit()
                raise BundleError("no model is loaded; choose one above")
            try:
                result = self._answer(self._chat, question)
            except RequestCancelledError:
                self.withdrawn.emit()
                return
            except Exception:
                self.withdrawn.emit()
                raise
            self.answered.emit(
                Outcome(
                    result.usage.new_tokens,
                    result.tokens_per_second,
                    result.timings.first_token,
                    result.finish_reason == "cancelled",
                    tuple(remarks(result, self._chat)),
                )
            )
            self._save(self._chat)

    def close(self) -> None:
        """Gives everything back; the last job."""
        model, self._model, self._chat = self._model, None, None
        try:
            with contextlib.ExitStack() as ends:
                if model is not None:
                    ends.callback(model.close)
                ends.callback(self._place.close)
        except Exception as error:
            self.failed.emit(line_of(error))
        finally:
            self.closed.emit()  # the window has gone; the program must too

    @contextlib.contextmanager
    def _job(self) -> Iterator[None]:
        """Whatever goes wrong in one job ends in one line, and the next job can come."""
        try:
            yield
        except Exception as error:
            self.failed.emit(line_of(error))
        finally:
            self.idle.emit()

    def _list(self) -> None:
        self._choices = conversations.choices()
        self.listed.emit(self._choices)
        self.kept.emit(conversations.saved_in(self._setup.folder), self._path)

    def _load(self, model: Path | None) -> None:
        from phirt.bundle.files import load_any
        from phirt_apps.models import bundle_folder, opened

        folder = bundle_folder(model)
        load_any(folder)  # what is no bundle shows before the model that is in use goes
        self.status.emit("loading the model …")
        self._place.close()
        self._path = self._chat = None
        if self._model is not None:
            self._model.close()
            self._model = None
        self.loaded.emit(None)
        self._model = opened(
            folder, lambda line: self.status.emit(f"{line} …"), self._setup.provider, self._setup.threads
        )
        known = [choice for choice in self._choices if choice.folder == folder]
        self.loaded.emit(known[0] if known else conversations.Choice(self._model.manifest.name, folder))

    def _begin(self) -> None:
        self._place.close()
        self._path = None
        if self._model is not None:
            self._chat = self._model.chat(system=self._setup.system)
        self.opened.emit([])
        self.kept.emit(conversations.saved_in(self._setup.folder), None)

    def _use_model_of(self, saved: conversations.Saved) -> None:
        manifest = None if self._model is None else self._model.manifest
        if manifest is not None and saved.bundle in (manifest.fingerprint, *manifest.continues):
            return
        choice = conversations.choice_for(saved.bundle, self._choices)
        if choice is None:
            raise ConversationError(
                f"“{saved.title}” was held with a model that has no name here; choose its folder above first"
            )
        self._load(choice.folder)

    def _chat_of(self, saved: conversations.Saved) -> phirt.Chat:
        """The kept conversation with its file for this process; the one that is open where it is that."""
        assert self._model is not None
        if saved.path == self._path:
            assert self._chat is not None
            return self._chat
        from phirt.chat.place import reserve

        with contextlib.ExitStack() as place:
            place.enter_context(reserve(saved.path))
            chat = self._model.load_chat(saved.path)
            self._place.close()
            self._place = place.pop_all()
        self._chat, self._path = chat, saved.path
        return chat

    def _answer(self, chat: phirt.Chat, question: Question) -> phirt.Result:
        if question.sources("audio") or question.sources("image"):
            self.status.emit("reading what is attached …")
        reply = chat.send(
            question.text,
            images=question.sources("image"),
            audio=question.sources("audio"),
            cancel=question.cancel,
            on_progress=self._on_progress,
            **self._setup.settings,
        )
        answer, begin, shown = markdown.AnswerMarkdown(), 0.0, 0.0
        for pieces, piece in enumerate(reply):
            now = time.monotonic()
            begin = begin or now
            answer.add(piece)
            if now - shown >= SHOWN_EVERY:
                shown = now
                self.written.emit(answer.settled(), answer.open)
                if now > begin:
                    self.speed.emit(pieces / (now - begin))
        self.written.emit(answer.end(), "")
        return reply.result

    def _on_progress(self, step: phirt.Progress) -> None:
        self.status.emit(f"reading: {step.done:,} of {step.total:,} tokens" if step.done < step.total else "")

    def _save(self, chat: phirt.Chat) -> None:
        if self._path is None:
            from phirt.chat.place import reserve

            conversations.prepare(self._setup.folder)
            path = conversations.new_place(self._setup.folder)
            self._place.enter_context(reserve(path))
            self._path = path
        chat.save(self._path)
        self.kept.emit(conversations.saved_in(self._setup.folder), self._path)


def line_of(error: Exception) -> str:
    """The one line that a person needs about an error; a fault of phirt's is logged as well."""
    if not isinstance(out_of_memory(error) or error, PhirtError):
        _log.error("a fault in phirt", exc_info=error)
    return one_line(description(error))


def _turns(chat: phirt.Chat) -> list[Turn]:
    return [
        Turn(
            message.role,
            message.content,
            tuple(f"{item.modality}, {item.num_tokens} tokens" for item in message.media),
            tuple(markdown.whole(message.content)) if message.role == "assistant" else (),
        )
        for message in chat.messages
    ]
