"""One answer in the making: ids from an engine, text from ids, and what it took.

Knows an engine's ids, the tokenizer, stop strings and clocks. Knows nothing of conversations; who wants to
know the end of an answer is called.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from phirt.bundle.manifest import Manifest
from phirt.errors import ChatBusyError, ConfigError
from phirt.generate.cancellation import Cancellation, CancelSignal
from phirt.generate.constraint import Constraint
from phirt.generate.engine import Engine, OnProgress
from phirt.generate.engine_pool import NOBODY, CacheOwner, EnginePool
from phirt.generate.results import FinishReason, Result, Timings, Usage
from phirt.generate.sampling import (
    GenerationConfig,
    LogitsProcessor,
    Sampler,
    TokenSampler,
    overridden,
    require_callables,
)
from phirt.generate.sequence import Prompt
from phirt.generate.speculation import Speculation
from phirt.prompt.stop_strings import StopStrings
from phirt.prompt.tokenizer import StreamDecoder, Tokenizer
from phirt.prompt.tools import Tools, parse_tool_calls

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerOptions:
    """How an answer is made, checked."""

    config: GenerationConfig
    logits_processors: tuple[LogitsProcessor, ...] = ()
    sampler: Sampler | None = None
    on_progress: OnProgress | None = None
    constraint: Constraint | None = None

    @classmethod
    def of(
        cls,
        config: GenerationConfig | None,
        overrides: Mapping[str, Any],
        logits_processors: Iterable[LogitsProcessor],
        sampler: Sampler | None,
        on_progress: OnProgress | None,
        constraint: Constraint | None = None,
        defaults: GenerationConfig | None = None,
    ) -> AnswerOptions:
        """What a request asks for; a `config` of None is `defaults`, which are the model's. Raises
        ConfigError for what is no setting, or cannot be called.
        """
        processors = require_callables(logits_processors, sampler)
        config = overridden(config, overrides, defaults)
        if constraint is not None and config.stop:
            raise ConfigError("stop strings would cut an answer that has a schema; leave one of them out")
        return cls(config, processors, sampler, on_progress, constraint)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is to be answered, and how.

    `media_seconds` is what was spent before the prompt could be run, `user_adapter` what the user calls the
    adapter that the prompt has.
    """

    prompt: Prompt
    options: AnswerOptions
    tools: Tools | None = None
    image_tokens: int = 0
    audio_tokens: int = 0
    media_seconds: float = 0.0
    owner: CacheOwner = NOBODY
    user_adapter: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Runtime:
    """What all answers of one model share."""

    manifest: Manifest
    tokenizer: Tokenizer
    pool: EnginePool


class Generation:
    """Runs one request step by step; pieces of text collect in `pieces`, the end in `outcome` or `failure`.

    Nothing runs before the first `advance`, which takes an engine; it is given back when the answer ends, or
    when this is collected. Safe to use from any thread: one runs at a time, the others wait for its step.
    `is_read` and `is_dropped` are for whoever streams it: that somebody has begun to read, and that they left
    without an end.
    """

    def __init__(
        self,
        runtime: Runtime,
        request: Request,
        cancel: Cancellation,
        on_end: Callable[[Generation], None] | None = None,
    ) -> None:
        self.request = request
        self.pieces: list[str] = []
        self.outcome: Result | None = None
        self.failure: Exception | None = None
        self.is_read = False
        self.is_dropped = False
        self._cancel = cancel
        self._on_end = on_end
        self._lock = threading.Lock()
        self._runner: int | None = None  # the thread that is in a step now
        self._state = _State(_Stopwatch(request.media_seconds))
        # It knows its state and not this object, or only the garbage collector would end what is dropped.
        self._steps = _text_pieces(runtime, request, cancel, self._state)

    @property
    def has_ended(self) -> bool:
        """Whether the answer is finished, cancelled or failed."""
        return self.outcome is not None or self.failure is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether the answer is to end within a step."""
        return self._cancel.is_set()

    @property
    def stop_string_found(self) -> bool:
        """Whether the text ends before its ids do, at a stop string."""
        return self._state.stop_string_found

    @property
    def runs_in_this_thread(self) -> bool:
        """Whether the caller was called by a step of this very answer."""
        return self._runner == threading.get_ident()

    def cancel(self) -> None:
        """Ends the answer within one step; it keeps what it has."""
        self._cancel.set()

    def advance(self) -> None:
        """Runs until the next piece of text or the end.

        Raises what the step raises, once: from then on `failure` holds it. Raises ChatBusyError when called
        by a step of the same answer, as by a progress listener that asks for more text.
        """
        if self.runs_in_this_thread:
            raise ChatBusyError("an answer was asked for its next piece by its own step; ask after the step")
        with self._lock:
            if self.has_ended:
                return
            self._runner = threading.get_ident()
            try:
                self.pieces.append(next(self._steps))
            except StopIteration as end:
                self._end(end.value)
            except Exception as error:
                self.failure = error
                self._tell_end()
                raise
            except BaseException:  # Ctrl-C, or a host that leaves: what was said so far stays
                self._end("cancelled")
                raise
            finally:
                self._runner = None

    def finish(self, stop_waiting: CancelSignal | None = None) -> bool:
        """Runs to the end, or until the event is set. Returns whether the end was reached.

        Whoever reads the answer still gets every piece, and its failure, which is not raised here.
        """
        while not self.has_ended:
            if stop_waiting is not None and stop_waiting.is_set():
                return False
            try:
                self.advance()
            except Exception as error:
                if error is not self.failure:
                    raise
                logger.warning("an answer failed while nobody was reading it: %s", error)
        return True

    def _end(self, reason: FinishReason) -> None:
        request, state = self.request, self._state
        text, speculation = "".join(self.pieces), state.speculation
        self.outcome = Result(
            text=text,
            token_ids=tuple(state.token_ids),
            prompt_token_ids=tuple(request.prompt.ids.tolist()),
            adapter=request.prompt.adapter.name,
            user_adapter=request.user_adapter,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(request.prompt.ids),
                cached_tokens=state.cached_tokens,
                image_tokens=request.image_tokens,
                audio_tokens=request.audio_tokens,
                new_tokens=len(state.token_ids),
                drafted_tokens=0 if speculation is None else speculation.drafted,
                accepted_tokens=0 if speculation is None else speculation.accepted,
            ),
            timings=state.stopwatch.timings(),
            tool_calls=parse_tool_calls(text, request.tools),
        )
        self._tell_end()

    def _tell_end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)


class _Stopwatch:
    """Seconds of work by what they went into; the time that a reader takes between pieces is in none."""

    def __init__(self, media: float) -> None:
        self._media = media
        self._prefill = self._decode = 0.0
        self._total = media

    def add(self, seconds: float, *, first: bool, gave_a_token: bool) -> None:
        """Notes a step; the first one is the prompt's. The step that finds the end gives no token, so it
        counts for the total alone.
        """
        self._total += seconds
        if first:
            self._prefill += seconds
        elif gave_a_token:
            self._decode += seconds

    def timings(self) -> Timings:
        """What was measured so far."""
        first_token = self._media + self._prefill
        return Timings(self._media, self._prefill, first_token, self._decode, self._total)


@dataclasses.dataclass(eq=False)
class _State:
    """What steps leave behind."""

    stopwatch: _Stopwatch
    token_ids: list[int] = dataclasses.field(default_factory=list)
    cached_tokens: int = 0
    speculation: Speculation | None = None
    stop_string_found: bool = False


_Steps = Generator[int, None, FinishReason]


def _text_pieces(
    runtime: Runtime, request: Request, cancel: Cancellation, state: _State
) -> Generator[str, None, FinishReason]:
    """Takes an engine and yields pieces of text; returns why the answer ended."""
    stops, decoder = StopStrings(request.options.config.stop), StreamDecoder(runtime.tokenizer)
    constraint = request.options.constraint
    with runtime.pool.engine_for(request.prompt, request.owner) as engine:
        steps = _start(engine, runtime.manifest, request, cancel, state)
        while True:
            runtime.pool.require_open()
            try:
                token = _timed_step(steps, state)
            except StopIteration as end:
                rest = stops.finish()
                if rest:
                    yield rest
                reason: FinishReason = end.value
                return reason
            state.token_ids.append(token)
            piece = stops.feed(decoder.feed(token))
            if piece:
                yield piece
            if stops.hit:
                state.stop_string_found = True
                return "stop"
            if constraint is not None:
                constraint.take(token)
                if constraint.is_complete:  # what would be chosen next is the end of the answer
                    return "stop"


def _start(
    engine: Engine, manifest: Manifest, request: Request, cancel: Cancellation, state: _State
) -> _Steps:
    """The ids of the answer, none of which is chosen yet."""
    prompt, options, tokens = request.prompt, request.options, manifest.tokens
    config = options.config
    state.cached_tokens = engine.reusable(prompt)
    if config.speculation:
        state.speculation = engine.speculation(tokens.eos, repeatable=config.seed is not None)
    choose = TokenSampler(
        config,
        manifest.geometry.vocab_size,
        prompt.ids.tolist(),
        manifest.placeholders,
        logits_processors=_processors(options),
        sampler=options.sampler,
    )
    return engine.generate(
        prompt,
        choose,
        max_new_tokens=config.max_new_tokens,
        eos=tokens.eos,
        cancel=cancel,
        on_progress=options.on_progress,
        speculation=state.speculation,
    )


def _processors(options: AnswerOptions) -> tuple[LogitsProcessor, ...]:
    """The request's own, and last what its grammar allows: nothing brings back what that forbids."""
    own, constraint = options.logits_processors, options.constraint
    return own if constraint is None else (*own, constraint)


def _timed_step(steps: _Steps, state: _State) -> int:
    """The next id. Raises StopIteration at the end."""
    begin, gave_a_token = time.perf_counter(), False
    try:
        token = next(steps)
        gave_a_token = True
        return token
    finally:
        elapsed = time.perf_counter() - begin
        state.stopwatch.add(elapsed, first=not state.token_ids, gave_a_token=gave_a_token)
