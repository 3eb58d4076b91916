"""Puts a task's items to models of one tokenizer: what came out for each.

Knows how each kind of item is asked. Knows nothing of files, examples or of any one task.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence

import phirt
from phirt.errors import ConfigError
from phirt.generate.sequence import Prompt
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_quant.evaluation import Case, Listener, Scorer, encode
from phirt_quant.likelihood import (
    continuation_likelihood,
    leading_ids,
    rolling_likelihood,
    split_tokens,
)
from phirt_quant.metrics import Answer, Choices, Outcome, Passage, Transcript
from phirt_quant.tasks.task import Document, Exercise, Item, Question, Recording
from phirt_quant.word_errors import spoken_words, word_errors

_SPOKEN_TOKENS = 128  # more than one sentence has


@dataclasses.dataclass(frozen=True)
class TextForm:
    """Text as a model has it.

    Attributes:
        encode: ids of content, without ids at the beginning; no text yields a control token.
        decode: text of ids.
        begin: ids that stand before every text; often none.
        bos: what a text begins with where something must.
        context: positions that the model takes.
        prompt: the ids of a user's turn with media, where the models take such turns.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    begin: tuple[int, ...]
    bos: int
    context: int
    prompt: Callable[[Case], Prompt] | None = None

    @property
    def nothing(self) -> list[int]:
        """The ids of an empty text that something follows."""
        return list(self.begin) or [self.bos]


def text_form(model: phirt.Model) -> TextForm:
    """Text as a bundle has it."""
    manifest, tokenizer = model.manifest, model.generator.tokenizer
    return TextForm(
        encode=tokenizer.encode_content,
        decode=lambda ids: tokenizer.decode(list(ids)),
        begin=tuple(leading_ids(manifest.path(manifest.tokenizer))),
        bos=manifest.tokens.bos,
        context=manifest.geometry.context,
        prompt=functools.partial(encode, model),
    )


class Examiner:
    """Asks; `needs_alone` is for measures of likelihoods without the context."""

    def __init__(self, form: TextForm, *, needs_alone: bool = False) -> None:
        self._form, self._needs_alone = form, needs_alone

    def put(self, scorer: Scorer, item: Item, draft: Sequence[int]) -> tuple[Outcome, list[int]]:
        """What came out, and the ids of what was written. `draft` is what another model wrote.

        Raises:
            ConfigError: the model cannot hear.
        """
        match item:
            case Question():
                return self.ask(scorer, item), []
            case Exercise():
                return self.set(scorer, item, draft)
            case Document():
                return self.roll(scorer, item), []
            case Recording():
                return self.play(scorer, item), []

    def ask(self, scorer: Scorer, question: Question) -> Choices:
        """The likelihood of every continuation."""
        scores = [self._likelihood(scorer, question.context, text) for text in question.continuations]
        alone = [self._likelihood(scorer, "", t) for t in question.continuations if self._needs_alone]
        texts = [continuation.removeprefix(" ") for continuation in question.continuations]
        return Choices(
            nats=tuple(nats for nats, _ in scores),
            greedy=tuple(is_greedy for _, is_greedy in scores),
            characters=tuple(map(len, texts)),
            bytes=tuple(len(text.encode()) for text in texts),
            gold=question.gold,
            alone=tuple(nats for nats, _ in alone),
        )

    def _likelihood(self, scorer: Scorer, context: str, continuation: str) -> tuple[float, bool]:
        form = self._form
        before, ids = split_tokens(form.encode, context, continuation)
        score = continuation_likelihood(scorer, [*form.begin, *before] or form.nothing, ids, form.context)
        return score.nats, score.is_greedy

    def set(self, scorer: Scorer, exercise: Exercise, draft: Sequence[int]) -> tuple[Answer, list[int]]:
        """The greedy answer up to the first stop, and its ids."""
        form = self._form
        context = [*form.begin, *form.encode(exercise.context)] or form.nothing
        context = context[-max(1, form.context - exercise.max_new_tokens) :]
        ids: list[int] = []
        text = ""
        for token in _first(scorer.answer(context, draft), exercise.max_new_tokens):
            ids.append(token)
            text = form.decode(ids)
            ends = [text.index(stop) for stop in exercise.stops if stop in text]
            if ends:
                text = text[: min(ends)]
                break
        is_right = exercise.is_right(text)
        loosely = exercise.is_right_loosely
        is_right_loosely = is_right if loosely is None else loosely(text)
        return Answer(text, is_right, is_right_loosely, exercise.target.removeprefix(" ")), ids

    def roll(self, scorer: Scorer, document: Document) -> Passage:
        """The likelihood of a whole text."""
        ids = list(self._form.encode(document.text))
        nats = rolling_likelihood(scorer, self._form.nothing[-1], ids, self._form.context)
        words = len(re.split(r"\s+", document.text))
        return Passage(nats, words, len(document.text.encode()))

    def play(self, scorer: Scorer, recording: Recording) -> Transcript:
        """What the model writes down."""
        prepare = self._form.prompt
        if prepare is None or not isinstance(scorer, Listener):
            raise ConfigError("recordings are put to bundles, and to checkpoints beside a bundle of theirs")
        case = Case(TRANSCRIBE_PROMPT, audio=(recording.audio,))
        heard = self._form.decode(list(_first(scorer.reply(case, prepare(case)), _SPOKEN_TOKENS)))
        said, heard = spoken_words(recording.target), spoken_words(heard)
        return Transcript(heard, word_errors(said, heard), len(said.split()))


def _first(tokens: Iterator[int], count: int) -> Iterator[int]:
    """At most `count` of them, without asking for one more: each costs a run."""
    for _, token in zip(range(count), tokens, strict=False):
        yield token
