"""Turns with a model: a chat that can be sent to, rewound and forked, and a reply that streams and can be
cancelled.

Knows messages, routes and the engine. Knows nothing of files; `conversation_file` saves and restores.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from phirt.encoders.audio_file import AudioSource
from phirt.encoders.encoder import ImageDetail
from phirt.encoders.image_file import ImageSource
from phirt.errors import ConfigError
from phirt.generate.engine import Engine, OnProgress
from phirt.generate.sampling import Chooser, GenerationConfig
from phirt.generate.sequence import Prompt
from phirt.prompt.messages import Message
from phirt.prompt.stop_strings import StopStrings
from phirt.prompt.tokenizer import StreamDecoder
from phirt.prompt.tools import parse_tool_calls, results_to_json

if TYPE_CHECKING:
    from pathlib import Path

    from phirt.model import Model

_DEFAULTS = GenerationConfig()


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished answer.

    `ids` are the generated ids without the end token. `finish_reason` is "stop", "length", "cancelled" or
    "context". `usage` counts "prompt_tokens", "cached_tokens" (of them not run again), "image_tokens",
    "audio_tokens", "new_tokens", and of speculation "drafted_tokens" (run before they were chosen) and
    "accepted_tokens" (the right ones of them, each of which spared a step). `timings` are seconds of work:
    "media", "prefill", "first_token" (all until then), "decode" (after it), "total".
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    route: str
    finish_reason: str
    usage: Mapping[str, int]
    timings: Mapping[str, float]
    tool_calls: tuple[dict[str, Any], ...]

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding: tokens after the first by the time they took; 0 where there are none."""
        steps = len(self.ids) - 1
        return steps / self.timings["decode"] if steps > 0 and self.timings["decode"] > 0 else 0.0


class Reply(Iterator[str]):
    """An answer in the making: iterate it for pieces of text. Nothing runs until the first piece is asked
    for.

    Only `cancel` may be called from another thread.
    """

    def __init__(
        self,
        chat: Chat,
        prompt: Prompt,
        config: GenerationConfig,
        counts: Mapping[str, int],
        on_progress: OnProgress | None = None,
    ) -> None:
        self._chat = chat
        self._prompt = prompt
        self._config = config
        self._on_progress = on_progress
        self._cancel = threading.Event()
        self._decoder = StreamDecoder(chat.model.tokenizer)
        self._stops = StopStrings(config.stop)
        eos, seeded = chat.model.manifest.tokens.eos, config.seed is not None
        self._speculation = chat.engine.speculation(eos, repeatable=seeded) if config.speculation else None
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._result: Result | None = None
        self._failure: BaseException | None = None
        self._started = False
        self._usage = {
            "prompt_tokens": len(prompt.ids),
            "cached_tokens": chat.engine.reusable(prompt),
            "image_tokens": counts["image"],
            "audio_tokens": counts["audio"],
            "new_tokens": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        }
        self.timings = dict.fromkeys(("media", "prefill", "first_token", "decode", "total"), 0.0)
        self._steps = self._run()

    def __iter__(self) -> Reply:
        return self

    def __next__(self) -> str:
        if self._failure is not None:
            raise self._failure
        if self._result is not None:
            raise StopIteration
        return next(self._steps)

    def cancel(self) -> None:
        """Stops the answer within one step; it keeps what it has. Safe from any thread, at any time."""
        self._cancel.set()

    @property
    def done(self) -> bool:
        """Whether the answer is finished, cancelled or failed."""
        return self._result is not None or self._failure is not None

    @property
    def result(self) -> Result:
        """The finished answer; runs to the end if it has not yet."""
        for _ in self:
            pass
        if self._failure is not None:
            raise self._failure
        assert self._result is not None
        return self._result

    def text(self) -> str:
        """The whole answer; runs to the end if it has not yet."""
        return self.result.text

    def settle(self) -> None:
        """Ends the answer: one that nobody has begun to read runs to its end, one that was left half-read is
        cut off.
        """
        if self.done:
            return
        if self._started:
            self.cancel()
        for _ in self:
            pass

    def _run(self) -> Generator[str, None, None]:
        self._started = True
        try:
            reason = yield from self._stream()
        except KeyboardInterrupt:
            self._finish("cancelled")
            raise
        except Exception as error:
            self._failure = error
            self._chat.drop_failed(self)
            raise
        self._finish(reason)

    def _stream(self) -> Generator[str, None, str]:
        """Yields pieces of text; returns why it ended."""
        steps = self._start()
        while True:
            try:
                token = self._timed_step(steps)
            except StopIteration as end:
                rest = self._stops.finish()
                if rest:
                    self._pieces.append(rest)
                    yield rest
                return str(end.value)
            self._ids.append(token)
            piece = self._stops.feed(self._decoder.feed(token))
            if piece:
                self._pieces.append(piece)
                yield piece
            if self._stops.hit:
                return "stop"

    def _start(self) -> Generator[int, None, str]:
        manifest = self._chat.model.manifest
        vocab_size = manifest.geometry.vocab_size
        return self._chat.engine.generate(
            self._prompt,
            Chooser(self._config, vocab_size, self._prompt.ids.tolist(), manifest.placeholders),
            max_new_tokens=self._config.max_new_tokens,
            eos=manifest.tokens.eos,
            cancel=self._cancel,
            on_progress=self._on_progress,
            speculation=self._speculation,
        )

    def _timed_step(self, steps: Generator[int, None, str]) -> int:
        """One id. Only work is timed, not the time a consumer takes between pieces."""
        begin = time.perf_counter()
        ended = True
        try:
            token = next(steps)
            ended = False
            return token
        finally:
            elapsed = time.perf_counter() - begin
            self.timings["total"] += elapsed
            if not self._ids:
                self.timings["prefill"] += elapsed
                self.timings["first_token"] = self.timings["media"] + self.timings["prefill"]
            elif not ended:  # the step that finds the end gives no token, so it counts for the total alone
                self.timings["decode"] += elapsed

    def _finish(self, reason: str) -> None:
        text = "".join(self._pieces)
        self._usage["new_tokens"] = len(self._ids)
        if self._speculation is not None:
            self._usage["drafted_tokens"] = self._speculation.drafted
            self._usage["accepted_tokens"] = self._speculation.accepted
        self._result = Result(
            text=text,
            ids=tuple(self._ids),
            prompt_ids=tuple(self._prompt.ids.tolist()),
            route=self._prompt.route,
            finish_reason=reason,
            usage=self._usage,
            timings=self.timings,
            tool_calls=parse_tool_calls(text),
        )
        # After a stop string the text ends before its ids do: the text then stands for the turn.
        ids = None if self._stops.hit else tuple(self._ids)
        self._chat.keep_answer(self, Message("assistant", text, ids=ids))


class Chat:
    """A conversation: its messages and the engine that caches them. Used from one thread at a time."""

    def __init__(
        self, model: Model, system: str | None, tools: str | None, engine: Engine | None = None
    ) -> None:
        self.model = model
        self.system = system
        self.tools = tools
        self.engine = engine if engine is not None else model.new_engine()
        self._messages: tuple[Message, ...] = ()
        self._pending: Reply | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns so far, without the system message."""
        return self._messages

    @property
    def route(self) -> str:
        """The route of the conversation as it stands: "none", "vision" or "speech"."""
        return self.model.route_of(self._messages)

    def send(
        self,
        text: str,
        *,
        images: Sequence[ImageSource] = (),
        audio: Sequence[AudioSource] = (),
        image_detail: ImageDetail = "auto",
        config: GenerationConfig = _DEFAULTS,
        on_progress: OnProgress | None = None,
    ) -> Reply:
        """Adds a user turn and returns its answer, which streams when it is iterated.

        Media are read and encoded here, so whatever is wrong with them shows at once: MediaError,
        ContextError (the prompt does not fit), ConfigError, BundleError. After an error the conversation is
        as it was. A reply that is still open is ended first: see `Reply.settle`.

        `image_detail` bounds what each of `images` costs: "low" one crop, "auto" a dozen, "high" as many as
        the model takes (see `phirt.encoders.phi4mm_image.cap_crops`). `on_progress` is called with a
        `phirt.Progress` while the prompt is run, and again should the conversation outgrow the model's
        original context in the middle of the answer, where all of it is run once more.
        """
        if not isinstance(text, str):
            raise ConfigError(f"text is a {type(text).__name__}, accepted: a string")
        self._require_config(config)
        self._settle()
        begin = time.perf_counter()
        media = self.model.prepare_media(images, audio, image_detail)
        return self._answer(Message("user", text, media), config, on_progress, begin)

    def send_tool_results(
        self,
        results: Sequence[Any],
        *,
        config: GenerationConfig = _DEFAULTS,
        on_progress: OnProgress | None = None,
    ) -> Reply:
        """Adds a turn with what the tools returned, and returns the model's answer to it.

        `results` has one JSON value for each of the last answer's `tool_calls`, in their order; they reach
        the model as one JSON list in a turn of the tool's role (`<|tool_response|>` for Phi-4). Raises
        ConfigError where the last answer called no tool or another number of them, and for what is no JSON.
        """
        self._require_config(config)
        self._settle()
        begin = time.perf_counter()
        last = self._messages[-1] if self._messages else None
        calls = parse_tool_calls(last.content) if last is not None and last.role == "assistant" else ()
        content = results_to_json(results, len(calls))
        return self._answer(Message(self.model.tool_role, content), config, on_progress, begin)

    def _answer(
        self, message: Message, config: GenerationConfig, on_progress: OnProgress | None, begin: float
    ) -> Reply:
        """The reply to the conversation with `message` at its end; `begin` is when work on it began."""
        messages = (*self._messages, message)
        prompt = self.model.encode_prompt(messages, self.system, self.tools)
        counts = {"image": 0, "audio": 0}
        for item in (item for turn in messages for item in turn.media):
            counts[item.modality] += item.num_tokens
        reply = Reply(self, prompt, config, counts, on_progress)
        reply.timings["media"] = reply.timings["total"] = time.perf_counter() - begin
        self._messages, self._pending = messages, reply
        return reply

    def reset(self) -> None:
        """Forgets all turns; the system message and the tools stay."""
        self._abandon()
        self._messages = ()
        self.engine.reset()

    def rewind(self, turns: int = 1) -> None:
        """Takes back the last `turns` questions with their answers. Raises ConfigError if there are not so
        many.
        """
        asked = [index for index, message in enumerate(self._messages) if message.role == "user"]
        if isinstance(turns, bool) or not isinstance(turns, int) or not 0 <= turns <= len(asked):
            raise ConfigError(f"turns is {turns!r}, accepted: 0 to {len(asked)}, the turns so far")
        self._abandon()
        if turns:
            self._messages = self._messages[: asked[-turns]]

    def fork(self) -> Chat:
        """An independent conversation with the same past; neither sees what the other does from here."""
        self._settle()
        other = Chat(self.model, self.system, self.tools, self.engine.fork())
        other._messages = self._messages
        return other

    def save(self, path: str | Path) -> None:
        """Writes the conversation to one file, with its media features and its cache. Raises
        ConversationError.
        """
        from phirt.chat import store as conversation_file

        self._settle()
        conversation_file.save(self, path)

    def restore_messages(self, messages: tuple[Message, ...]) -> None:
        """Takes over the turns of a saved conversation."""
        self._messages = messages

    def keep_answer(self, reply: Reply, answer: Message) -> None:
        """Adds the answer of a reply that has ended, unless the conversation has gone on without it."""
        if self._pending is reply:
            self._pending = None
            self._messages = (*self._messages, answer)

    def drop_failed(self, reply: Reply) -> None:
        """Takes back the question of a reply that failed."""
        if self._pending is reply:
            self._pending = None
            self._messages = self._messages[:-1]

    @staticmethod
    def _require_config(config: object) -> None:
        if not isinstance(config, GenerationConfig):
            raise ConfigError(f"config is a {type(config).__name__}, accepted: a GenerationConfig")

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.settle()

    def _abandon(self) -> None:
        """Ends an open reply without running it any further."""
        if self._pending is not None:
            pending = self._pending
            pending.cancel()
            pending.settle()
