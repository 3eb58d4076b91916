"""Retrieval at length: a passkey hidden in text of so many tokens, between its beginning and its end, and
asked for at the end.

Knows how such prompts are made, and how what a model makes of them is summed up. Knows nothing of models: one
is whatever scores. A needle counts as found where each token of the passkey is the likeliest; the perplexity
of the passkey's tokens tells more of models that find none.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence

from phirt.errors import ConfigError
from phirt_quant.evaluation import Scorer
from phirt_quant.examiner import TextForm
from phirt_quant.likelihood import Likelihood, continuation_likelihood, split_tokens

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
COUNT = 4
_HIDDEN = " The passkey is {key}. Remember it: {key} is the passkey."
_QUESTION = " What is the passkey? The passkey is"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclasses.dataclass(frozen=True)
class Needle:
    """A prompt as ids, the ids of the passkey that should follow, tokens of both together, and how deep in
    the text it is hidden: 0 at its beginning, 1 at its end.
    """

    context_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    length: int
    depth: float


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """What came of the needles at one length and depth: the share that was found, and the perplexity of the
    passkeys' tokens.
    """

    length: int
    depth: float
    items: int
    found: float
    perplexity: float


def make_needles(
    form: TextForm,
    texts: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    count: int = COUNT,
    seed: int = 0,
) -> list[Needle]:
    """`count` needles for each length and depth, in sentences of the texts, which are repeated as needed. All
    is a function of the seed.

    Raises:
        ConfigError: a length or depth is out of range, or the texts have no words.
    """
    sentences = [
        ids
        for text in texts
        for sentence in _SENTENCE_END.split(text)
        if sentence.strip() and (ids := list(form.encode(f" {sentence.strip()}")))
    ]
    if not sentences:
        raise ConfigError("the text has no words to hide a passkey between; give more")
    if outside := [depth for depth in depths if not 0 <= depth <= 1]:
        raise ConfigError(f"depth {outside[0]:g} is out of range; accepted: 0, at the beginning, to 1")
    needles = []
    for length, depth, number in itertools.product(lengths, depths, range(count)):
        needles.append(_needle(form, sentences, length, depth, random.Random(f"{seed} {length} {number}")))
    return needles


def _needle(
    form: TextForm, sentences: Sequence[Sequence[int]], length: int, depth: float, draw: random.Random
) -> Needle:
    """One needle; those of one length and number differ by depth alone."""
    key = draw.randrange(10_000, 100_000)
    hidden = list(form.encode(_HIDDEN.format(key=key)))
    question, answer = split_tokens(form.encode, _QUESTION, f" {key}")
    room = length - len(form.begin) - len(hidden) - len(question) - len(answer)
    if room < 0 or length > form.context:
        least = length - room
        raise ConfigError(
            f"a needle in {length} tokens was asked for; accepted: {least} to the {form.context} that the "
            "model takes"
        )
    text, borders = _filler(sentences, room, draw.randrange(len(sentences)))
    place = min(borders, key=lambda border: abs(border - depth * room))
    context = [*form.begin, *text[:place], *hidden, *text[place:], *question]
    return Needle(tuple(context), tuple(answer), length, depth)


def _filler(sentences: Sequence[Sequence[int]], room: int, first: int) -> tuple[list[int], list[int]]:
    """Exactly `room` ids of sentences, and where one begins or the last one ends."""
    text: list[int] = []
    borders = [0]
    for place in itertools.count(first):
        if len(text) >= room:
            break
        text += sentences[place % len(sentences)]
        borders.append(min(len(text), room))
    return text[:room], borders


def seek(scorer: Scorer, needle: Needle, context: int) -> Likelihood:
    """How likely the model finds the passkey, and whether it would write it."""
    return continuation_likelihood(scorer, needle.context_ids, needle.answer_ids, context)


def seek_all(
    scorers: Sequence[Scorer],
    needles: Sequence[Needle],
    context: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Retrieval]]:
    """What came of all needles, for each scorer by length and depth, in the order of the needles."""
    found: list[list[Likelihood]] = [[] for _ in scorers]
    for done, needle in enumerate(needles):
        if on_progress is not None:
            on_progress(done, len(needles))
        for scorer, of in zip(scorers, found, strict=True):
            of.append(seek(scorer, needle, context))
    if on_progress is not None:
        on_progress(len(needles), len(needles))
    return [list(_summed(needles, of)) for of in found]


def _summed(needles: Sequence[Needle], found: Sequence[Likelihood]) -> Iterator[Retrieval]:
    cells: dict[tuple[int, float], list[tuple[Needle, Likelihood]]] = {}
    for needle, score in zip(needles, found, strict=True):
        cells.setdefault((needle.length, needle.depth), []).append((needle, score))
    for (length, depth), cell in cells.items():
        nats = -math.fsum(score.nats for _, score in cell)
        tokens = sum(len(needle.answer_ids) for needle, _ in cell)
        share = sum(score.is_greedy for _, score in cell) / len(cell)
        yield Retrieval(length, depth, len(cell), share, math.exp(min(nats / tokens, 700.0)))
