"""One answer: what is asked of the model, and what comes back, event by event.

Knows the runtime's generator. Knows nothing of the protocols' words.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import phirt
from phirt.generate.grammar import Grammar
from phirt.generate.sampling import LogitsProcessor

from .errors import BadRequestError
from .jobs import Emit, Work
from .metrics import Metrics
from .sampling import ChanceRecorder, TokenChance, biases, penalties
from .tool_use import ToolUse
from .turns import Turn, to_messages


@dataclass(frozen=True)
class Question:
    """What is to be answered, and how. `settings` are those of `GenerationConfig` that the request gives,
    `schema` the form of the answer, `top_chances` how many tokens are named with their probabilities beside
    each chosen one (None: nothing is said of probabilities).
    """

    turns: tuple[Turn, ...]
    tools: ToolUse
    settings: Mapping[str, Any]
    schema: Grammar | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    biases: Mapping[int, float] = field(default_factory=dict)
    top_chances: int | None = None


@dataclass(frozen=True)
class Begun:
    """The request is found good, and will be answered."""


@dataclass(frozen=True)
class Piece:
    """Some text, with the tokens that it ends with where they are asked for."""

    text: str
    chances: tuple[TokenChance, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The whole answer; `chances` are those of tokens behind the last piece."""

    result: phirt.Result
    chances: tuple[TokenChance, ...] = ()


AnswerEvent = Begun | Piece | Ended


def answer(model: phirt.Model, question: Question, metrics: Metrics) -> Work[AnswerEvent]:
    """The work of a thread that answers."""

    def work(emit: Emit[AnswerEvent], cancel: threading.Event) -> None:
        begin = time.monotonic()
        generator = model.generator
        config = dataclasses.replace(generator.defaults, **question.settings)
        _require_tokens(question.biases, model.manifest.geometry.vocab_size)
        recorder = None if question.top_chances is None else ChanceRecorder(config, question.top_chances)
        stream = generator.stream(
            to_messages(generator, question.turns, cancel),
            tools=question.tools.offered,
            schema=question.tools.grammar(generator) if question.tools.forced else question.schema,
            config=config,
            logits_processors=_processors(question, recorder),
            sampler=None if recorder is None else recorder.sample,
            cancel=cancel,
        )
        emit(Begun())
        given, first = 0, True
        for text in stream:
            if first:
                metrics.first_token.observe(time.monotonic() - begin)
                first = False
            chances = () if recorder is None else recorder.take(recorder.noted)
            given += len(chances)
            emit(Piece(text, chances))
        result = stream.result
        usage = result.usage
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        metrics.new_tokens.inc(usage.new_tokens)
        # The token that ends an answer is noted, and no part of it.
        emit(Ended(result, () if recorder is None else recorder.take(len(result.token_ids) - given)))

    return work


def _require_tokens(biases: Mapping[int, float], vocab_size: int) -> None:
    unknown = [token for token in biases if token >= vocab_size]
    if unknown:
        raise BadRequestError(
            f"logit_bias names the token {unknown[0]}, the last one is {vocab_size - 1}", param="logit_bias"
        )


def _processors(question: Question, recorder: ChanceRecorder | None) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = [] if recorder is None else [recorder.process]
    if question.presence_penalty or question.frequency_penalty:
        processors.append(penalties(question.presence_penalty, question.frequency_penalty))
    if question.biases:
        processors.append(biases(question.biases))
    return processors
