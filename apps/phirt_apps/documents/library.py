"""A folder of documents that questions are answered from: opened once, looked through before each question.

Knows its index, its encoder and what a user is told. Does not know options, nor how answers are shown.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import phirt
from phirt.errors import ConfigError
from phirt.prompt.messages import Message
from phirt_apps.answer import Request
from phirt_apps.extras import install_line
from phirt_apps.home import expand_home
from phirt_apps.models import bundle_folder, small_enough_to_hash
from phirt_apps.output import Output, one_line

from .index import Entry, Index
from .limits import LIMITS, Limits
from .place import discard, index_place, locked
from .prompt import MOST_PASSAGES, Citation, grounded
from .retrieval import search
from .updating import Update, update

_Done = TypeVar("_Done")

_MOST_LINES = 12
_MOST_TOKENS = 1_600  # of passages: what a small model still reads with care, in a few seconds
_ANSWER_SHARE = 4  # at least one token of so many is kept for the answer


class Library:
    """The documents of a folder, or of one file.

    Raises ConfigError for what is neither, BundleError for an encoder that is none.
    """

    def __init__(self, folder: Path, embedder: Path | None, out: Output, *, limits: Limits = LIMITS) -> None:
        self.root = expand_home(folder).absolute()
        if not self.root.exists():
            raise ConfigError(f"{one_line(str(folder))} does not exist; name a folder of documents")
        if not (self.root.is_dir() or self.root.is_file()):
            raise ConfigError(f"{one_line(str(folder))} is no folder; name one with documents, or a document")
        self._out, self._limits = out, limits
        self._former: str | None = None
        self._told: set[str] = set()
        self._is_first = True  # refresh
        self._place = _place(self.root, out)
        self._index = self._open_index()
        self._embedder = None if embedder is None else _open_embedder(embedder)

    def __enter__(self) -> Library:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Gives files and memory back."""
        self._index.close()
        if self._embedder is not None:
            self._embedder.close()

    def begin_again(self) -> None:
        """The next question has nothing to do with the last one."""
        self._former = None

    def refresh(self) -> None:
        """Brings the index up to date, and says what was done and what could not be read."""
        if not self._index.is_open:  # a damaged one, in whose place none could be made then
            self._index = self._open_index()
        done = self._indexed(self._update, lambda: None)
        lines = [line for line in done.lines if line not in self._told]
        for line in lines[:_MOST_LINES]:
            self._out.hint(one_line(line))
        if len(lines) > _MOST_LINES:
            self._out.hint(f"and {len(lines) - _MOST_LINES} more")
        if done.no_pdf:
            self._tell(f"{_named(done.no_pdf)} not read, which needs: {install_line('pdf')}")
        if done.former and self._is_first:
            self._tell(f"{_named(done.former)} not read in full, as before")
        self._is_first = False
        self._told |= set(lines)
        if done.read or done.dropped:
            dropped = f", {done.dropped} gone" if done.dropped else ""
            self._out.hint(f"documents: {done.read} read{dropped}; {self._index.count()} passages")

    def ask(self, request: Request, chat: phirt.Chat) -> tuple[Request, tuple[Citation, ...]]:
        """The request with the passages that it is to be answered from, and these. A request without words is
        as it was. Raises ContextError where the conversation has no room for any.
        """
        if not request.text.strip():
            return request, ()
        self.refresh()
        entries = self._indexed(lambda: self._search(request.text), self.refresh)
        self._former = request.text
        if not entries:
            self._out.hint(f"nothing in {one_line(self.root.name)} fits the question; answered without it")
            return request, ()
        found = grounded(
            request.text, entries, _room(chat, request), lambda text: chat.generator.count_tokens(text).text
        )
        return replace(request, text=found.text), found.citations

    def _tell(self, line: str) -> None:
        """Says what a session need hear only once."""
        if line not in self._told:
            self._told.add(line)
            self._out.hint(line)

    def _search(self, question: str) -> list[Entry]:
        return search(self._index, self._embedder, question, self._former, MOST_PASSAGES)

    def _update(self) -> Update:
        def wait() -> None:
            self._out.hint("another phirt is reading these documents: waiting until it has ended")

        with locked(self._place, wait), self._out.busy("looking through the documents") as busy:
            return update(self._index, self.root, self._embedder, self._limits, busy.advance)

    def _open_index(self) -> Index:
        try:
            return Index(self._place)
        except (sqlite3.Error, OSError) as error:
            return self._begin_anew(error)

    def _begin_anew(self, error: Exception) -> Index:
        """A new index in the place of one that is damaged, or of another version."""
        if self._place is None or not _is_damage(error):
            raise _cannot_use(error) from error
        try:
            with locked(self._place, lambda: None):
                discard(self._place)
                return Index(self._place)
        except (sqlite3.Error, OSError) as again:
            raise ConfigError(
                f"the index {self._place} is damaged, and cannot be removed: {again}"
            ) from again

    def _indexed(self, work: Callable[[], _Done], fill: Callable[[], None]) -> _Done:
        """Does the work, a second time with a new index where the old one turns out to be damaged; `fill`
        reads the documents into that before. An index that is only locked, or on a full disk, stays. Raises
        ConfigError.
        """
        try:
            return work()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise _cannot_use(error) from error
            self._index.close()
            self._index = self._begin_anew(error)
        try:
            fill()
            return work()
        except sqlite3.Error as again:
            raise _cannot_use(again) from again


def _is_damage(error: Exception) -> bool:
    """Whether an index is of no use any more, not merely out of reach or used wrongly."""
    passing = sqlite3.OperationalError | sqlite3.ProgrammingError
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, passing)


def _cannot_use(error: Exception) -> ConfigError:
    return ConfigError(f"the index of the documents cannot be used: {error}")


def _place(root: Path, out: Output) -> Path | None:
    """Where the index is kept; in memory, and a line says so, where it cannot be."""
    try:
        return index_place(root)
    except ConfigError as error:
        out.hint(f"the index of the documents is not kept: {error}")
        return None


def _open_embedder(model: Path) -> phirt.Embedder:
    folder = bundle_folder(model)
    return phirt.Embedder(folder, verify=small_enough_to_hash(folder))


def _named(names: list[str]) -> str:
    shown = ", ".join(map(one_line, names[:3]))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"


def _room(chat: phirt.Chat, request: Request) -> int:
    """Tokens that the text of the message may have, in what the conversation has left beside an answer."""
    generator = chat.generator
    context = generator.manifest.geometry.context
    said: list[Message] = list(chat.messages)
    used = sum(generator.count_tokens(one.content).total for one in said)
    used += sum(item.num_tokens for one in said for item in one.media)
    if chat.system is not None:
        used += generator.count_tokens(chat.system).total
    answer = min(int(request.settings.get("max_new_tokens", 512)), context // _ANSWER_SHARE)
    asked = generator.count_tokens(
        request.text, request.images, request.audio, image_detail=request.image_detail
    )
    return asked.text + min(_MOST_TOKENS, context - used - answer - asked.total)
