"""Turns with a model: a chat that can be sent to, rewound, forked, saved and restored.

Knows messages and whose turn it is. Knows nothing of engines, encoders or how an answer is made; the
generator does. Importing this loads onnxruntime, for the generator needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from phirt.chat import store
from phirt.chat.reply import AsyncReply, Reply
from phirt.encoders.encoder import ImageDetail
from phirt.errors import ChatBusyError, ConfigError
from phirt.generate.cancellation import CancelSignal, check
from phirt.generate.engine import OnProgress
from phirt.generate.engine_pool import CacheOwner
from phirt.generate.generation import AnswerOptions, Generation
from phirt.generate.grammar import Grammar
from phirt.generate.json_schema import JsonSchema
from phirt.generate.sampling import GenerationConfig, GenerationOverrides, LogitsProcessor, Sampler
from phirt.generator import Generator
from phirt.prompt.messages import Message
from phirt.prompt.tools import Tools, parse_tool_calls, results_to_json

if TYPE_CHECKING:  # Pillow and soundfile: only whoever brings media needs them
    from phirt.encoders.audio_file import AudioSource
    from phirt.encoders.image_file import ImageSource

_POLL_SECONDS = 0.05  # how often a thread that waits for its turn looks whether it is still wanted


class AnswerArguments(GenerationOverrides, total=False):
    """What `Chat.send_tool_results` takes beside the results."""

    config: GenerationConfig | None
    logits_processors: Iterable[LogitsProcessor]
    sampler: Sampler | None
    on_progress: OnProgress | None
    schema: JsonSchema | Grammar | None
    wait: bool


class SendArguments(AnswerArguments, total=False):
    """What `Chat.send` takes beside the text."""

    images: Iterable[ImageSource]
    audio: Iterable[AudioSource]
    image_detail: ImageDetail


class Chat:
    """A conversation: its messages, its system message, the tools that it offers.

    One answer is made at a time. Any thread may call any method; one that would disturb an answer which
    somebody is reading raises ChatBusyError, see `send`.
    """

    def __init__(
        self,
        generator: Generator,
        system: str | None = None,
        tools: Tools | Iterable[Mapping[str, Any]] | None = None,
        user_adapter: str | None = None,
    ) -> None:
        if system is not None and not isinstance(system, str):
            raise ConfigError(f"system is a {type(system).__name__}, accepted: a string or None")
        self.generator = generator
        self.system = system
        self.tools = Tools.of(tools)
        generator.user_adapter_digest(user_adapter)
        self._user_adapter = user_adapter
        self._messages: tuple[Message, ...] = ()
        self._pending: Generation | None = None  # the answer to the last message
        self._owner = CacheOwner(weakref.ref(self), lineage=object())
        self._turn = threading.Lock()  # held while a turn is begun or taken back
        self._history = threading.Lock()  # held for a moment around `_messages` and `_pending`

    def __repr__(self) -> str:
        turns = self._messages
        state = f"{len(turns)} turns, the last by {turns[-1].role}" if turns else "no turns"
        return f"<phirt.Chat with {self.generator.manifest.name!r}: {state}>"

    def _repr_html_(self) -> str:
        """The conversation in a notebook; whatever was said is shown and never interpreted."""
        turns = self._messages if self.system is None else (Message("system", self.system), *self._messages)
        rows = []
        for turn in turns:
            media = "".join(f"[{item.modality}: {item.num_tokens} tokens] " for item in turn.media)
            said = html.escape(media + turn.content)
            rows.append(
                f'<tr><th style="text-align: left; vertical-align: top">{html.escape(turn.role)}</th>'
                f'<td style="text-align: left; white-space: pre-wrap">{said}</td></tr>'
            )
        return f"<table>{''.join(rows)}</table>"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns so far, without the system message. An answer is among them when it has ended."""
        return self._messages

    @property
    def adapter(self) -> str:
        """The bundle's own adapter for the conversation as it stands; "none" is the base model."""
        return self.generator.adapter_of(self._messages)

    @property
    def user_adapter(self) -> str | None:
        """The name of the user's adapter that is added to it."""
        return self._user_adapter

    def use_adapter(self, name: str | None) -> None:
        """Answers with another adapter of those that the model was loaded with, or with none, from the next
        turn on, for which the whole history is run again. An open reply is treated as by `send`. Raises
        ConfigError.
        """
        self.generator.user_adapter_digest(name)
        with self._next_turn(wait=False):
            self._user_adapter = name

    def send(
        self,
        text: str,
        *,
        images: Iterable[ImageSource] = (),
        audio: Iterable[AudioSource] = (),
        image_detail: ImageDetail = "auto",
        config: GenerationConfig | None = None,
        logits_processors: Iterable[LogitsProcessor] = (),
        sampler: Sampler | None = None,
        on_progress: OnProgress | None = None,
        schema: JsonSchema | Grammar | None = None,
        wait: bool = False,
        cancel: CancelSignal | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Reply:
        """Adds a user turn and returns its answer, which streams when it is iterated.

        Media are read and encoded here, so whatever is wrong with them shows at once: MediaError,
        ContextError (the prompt does not fit), ConfigError, BundleError, ClosedError. After an error the
        conversation is as it was.

        An earlier reply that nobody has begun to read is run to its end first, and keeps its pieces for its
        reader; one that was cancelled is ended. While somebody is in the middle of one, and while another
        thread sends, this raises ChatBusyError; with `wait` it waits for them, and runs the answer to its end
        itself.

        `image_detail` bounds what each of `images` costs: "low" one crop, "auto" a dozen, "high" as many as
        the model takes. `overrides` are settings that differ from `config`: `send("…", max_new_tokens=3)`.
        `logits_processors` and `sampler` are callables (see `phirt.generate.sampling`); each is called once
        for each token, so answers stay what they are without speculation. `on_progress` is called with a
        `phirt.Progress` while the prompt is run, and again should the conversation outgrow the model's
        original context in the middle of the answer, where all of it is run once more. `schema` is a JSON
        schema as a dict, or a `phirt.Grammar`, that the answer is kept to token by token, and
        `reply.result.json()` what it says; SchemaError says why one cannot be kept. `cancel` is set, from
        any thread, to end the answer as `Reply.cancel` does; before the answer begins that raises
        RequestCancelledError between one of the media and the next.
        """
        options = self.generator.options(config, overrides, logits_processors, sampler, on_progress, schema)
        if not isinstance(text, str):
            raise ConfigError(f"text is a {type(text).__name__}, accepted: a string")
        with self._next_turn(wait, cancel):
            begin = time.perf_counter()
            message = self.generator.message(
                text, images=images, audio=audio, image_detail=image_detail, cancel=cancel
            )
            return self._answer(message, options, begin, cancel)

    def send_tool_results(
        self,
        results: Iterable[Any],
        *,
        config: GenerationConfig | None = None,
        logits_processors: Iterable[LogitsProcessor] = (),
        sampler: Sampler | None = None,
        on_progress: OnProgress | None = None,
        schema: JsonSchema | Grammar | None = None,
        wait: bool = False,
        cancel: CancelSignal | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Reply:
        """Adds a turn with what the tools returned, and returns the model's answer to it.

        `results` has one JSON value for each of the last answer's `tool_calls`, in their order; they reach
        the model as one JSON list in a turn of the tool's role (`<|tool_response|>` for Phi-4). Raises
        ConfigError where the last answer called no tool or another number of them, and for what is no JSON.
        The other arguments are those of `send`.
        """
        options = self.generator.options(config, overrides, logits_processors, sampler, on_progress, schema)
        with self._next_turn(wait, cancel):
            begin = time.perf_counter()
            last = self._messages[-1] if self._messages else None
            is_answer = last is not None and last.role == "assistant"
            calls = parse_tool_calls(last.content, self.tools) if last is not None and is_answer else ()
            content = results_to_json(results, len(calls))
            return self._answer(Message(self.generator.tool_role, content), options, begin, cancel)

    def asend(self, text: str, **arguments: Unpack[SendArguments]) -> AsyncReply:
        """`send` for asyncio, with the same arguments: `async for piece in chat.asend("…")`.

        Nothing is done before the first piece is asked for; errors of `send` are raised there.
        """
        return AsyncReply(lambda cancel: self.send(text, cancel=cancel, **arguments))

    def asend_tool_results(self, results: Iterable[Any], **arguments: Unpack[AnswerArguments]) -> AsyncReply:
        """`send_tool_results` for asyncio, with the same arguments."""
        return AsyncReply(lambda cancel: self.send_tool_results(results, cancel=cancel, **arguments))

    def reset(self) -> None:
        """Forgets all turns; the system message and the tools stay. An open reply is cancelled."""
        with self._after_cancelling():
            self._messages = ()
            self.generator.pool.forget(self._owner)

    def rewind(self, turns: int = 1) -> None:
        """Takes back the last `turns` questions with their answers; an open reply is cancelled. Raises
        ConfigError if there are not so many.
        """
        asked = [index for index, message in enumerate(self._messages) if message.role == "user"]
        if isinstance(turns, bool) or not isinstance(turns, int) or not 0 <= turns <= len(asked):
            raise ConfigError(f"turns is {turns!r}, accepted: 0 to {len(asked)}, the turns so far")
        with self._after_cancelling():
            if turns:
                self._messages = self._messages[: asked[-turns]]

    def fork(self) -> Chat:
        """An independent conversation with the same past; neither sees what the other does from here. An open
        reply is treated as by `send`.
        """
        with self._next_turn(wait=False):
            other = Chat(self.generator, self.system, self.tools, self._user_adapter)
            other._messages = self._messages
            other._owner = dataclasses.replace(self._owner, conversation=weakref.ref(other))
            return other

    def save(self, path: str | Path) -> None:
        """Writes the conversation to one file, with its media features and its cache. Raises
        ConversationError. An open reply is treated as by `send`.
        """
        with self._next_turn(wait=False):
            saved = store.Conversation(self.system, self.tools, self._messages, self._user_adapter)
            store.save(self.generator, saved, self._owner, path)

    @classmethod
    def load(cls, generator: Generator, path: str | Path, user_adapter: str | None = None) -> Chat:
        """A conversation that `save` wrote, ready to go on: with the adapter that it had, or with another.
        Raises ConversationError, ConfigError.
        """
        generator.pool.require_open()
        restored = store.load(generator, path, user_adapter)
        chat = cls(generator, restored.system, restored.tools, restored.user_adapter)
        chat._messages = restored.messages
        chat._owner = dataclasses.replace(chat._owner, isolated=True)
        if restored.engine is not None:
            generator.pool.adopt(restored.engine, chat._owner)
        return chat

    def _answer(
        self, message: Message, options: AnswerOptions, begin: float, cancel: CancelSignal | None
    ) -> Reply:
        """The reply to the conversation with `message` at its end."""
        messages = (*self._messages, message)
        me = weakref.ref(self)
        generation = self.generator.generation(
            messages,
            self.system,
            self.tools,
            options,
            cancel=cancel,
            begin=begin,
            owner=self._owner,
            on_end=lambda generation: _keep(me(), generation),
            user_adapter=self._user_adapter,
        )
        with self._history:
            self._messages, self._pending = messages, generation
        return Reply(generation)

    @contextlib.contextmanager
    def _next_turn(self, wait: bool, cancel: CancelSignal | None = None) -> Iterator[None]:
        """Holds the turn when the earlier answer has ended. Raises ChatBusyError where that would disturb its
        reader and it is not to `wait`; RequestCancelledError where `cancel` is set meanwhile.
        """
        self.generator.pool.require_open()
        pending = self._pending
        if pending is not None and pending.runs_in_this_thread:
            raise ChatBusyError("this chat is in the middle of an answer, which calls it; send after its end")
        while not self._turn.acquire(timeout=_POLL_SECONDS if wait else 0):
            if not wait:
                raise ChatBusyError(
                    "another thread is sending to this chat; wait for it, pass wait=True, or use a chat for "
                    "each thread"
                )
            check(cancel)
        try:
            self._end_pending(wait, cancel)
            yield
        finally:
            self._turn.release()

    def _end_pending(self, wait: bool, cancel: CancelSignal | None) -> None:
        pending = self._pending
        if pending is None or pending.has_ended:
            return
        if pending.is_dropped:
            pending.cancel()
        if pending.is_read and not pending.is_cancelled and not wait:
            raise ChatBusyError(
                "this chat is in the middle of an answer; read it to its end, cancel it, pass wait=True, or "
                "use a chat for each thread"
            )
        if not pending.finish(stop_waiting=cancel):
            check(cancel)

    @contextlib.contextmanager
    def _after_cancelling(self) -> Iterator[None]:
        """Holds the turn when an open answer has been cut off."""
        pending = self._pending
        if pending is not None:
            pending.cancel()
        with self._next_turn(wait=True):
            yield


def _keep(chat: Chat | None, generation: Generation) -> None:
    """Adds an answer that has ended to its chat; where it has failed, takes its question back."""
    if chat is None:
        return
    result = generation.outcome
    with chat._history:
        if chat._pending is not generation:
            return
        chat._pending = None
        if result is None:
            chat._messages = chat._messages[:-1]
            return
        # After a stop string the text ends before its ids do: the text then stands for the turn.
        token_ids = None if generation.stop_string_found else result.token_ids
        chat._messages = (*chat._messages, Message("assistant", result.text, token_ids=token_ids))
