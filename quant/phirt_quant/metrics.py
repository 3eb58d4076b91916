"""Measures of a model on a task, each with its standard error, and how far two models are apart.

Knows what came out for each item. Knows nothing of tasks, models or text. Names and definitions are those of
lm-evaluation-harness.

A measure is a smooth function of means over items, so its error follows from how much each item moves it (the
delta method); between two models on the same items, from how much each item moves the difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from phirt_quant.text_overlap import BleuCounts, bleu, bleu_counts, rouge_l

_Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What came out for a question: of each continuation the log-likelihood in nats, whether it was the
    greedy one, and its characters and bytes without the space before it; and which was right. `alone` are the
    log-likelihoods without the context, where a measure needs them.
    """

    nats: tuple[float, ...]
    greedy: tuple[bool, ...]
    characters: tuple[int, ...]
    bytes: tuple[int, ...]
    gold: int
    alone: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came out for an exercise, whether a laxer reading of it is right, and what is wanted."""

    text: str
    is_right: bool
    is_right_loosely: bool = False
    wanted: str = ""


@dataclasses.dataclass(frozen=True)
class Passage:
    """What came out for a document: its log-likelihood in nats, its words (between white space) and bytes."""

    nats: float
    words: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What came out for a recording: the text, the words that must change in it, and the words that were
    said.
    """

    text: str
    errors: int
    words: int


Outcome = Choices | Answer | Passage | Transcript


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A measure and, for each item, how much it moves it: float64 [items], of any mean."""

    value: float
    influence: _Array

    @property
    def standard_error(self) -> float | None:
        """Of the value; None for a single item."""
        return _standard_error(self.influence)

    def minus(self, other: Estimate) -> tuple[float, float | None]:
        """This less another model's on the same items, and the standard error of that."""
        return self.value - other.value, _standard_error(self.influence - other.influence)


def estimate(metric: str, outcomes: Sequence[Outcome]) -> Estimate:
    """One of METRICS over what came out for all items, of which there is one at least."""
    return METRICS[metric].estimate(outcomes)


def _standard_error(influence: _Array) -> float | None:
    if len(influence) < 2:
        return None
    return float(influence.std(ddof=1) / math.sqrt(len(influence)))


def _mean_of(score: Callable[[Choices], float]) -> Callable[[Sequence[Outcome]], Estimate]:
    """The mean of each question's score."""

    def metric(outcomes: Sequence[Outcome]) -> Estimate:
        scores = np.array([score(outcome) for outcome in _choices(outcomes)], np.float64)
        return Estimate(float(scores.mean()), scores)

    return metric


def _choices(outcomes: Sequence[Outcome]) -> list[Choices]:
    chosen = [outcome for outcome in outcomes if isinstance(outcome, Choices)]
    assert len(chosen) == len(outcomes) > 0
    return chosen


def _is_best(scores: Sequence[float], gold: int) -> float:
    return float(int(np.argmax(scores)) == gold)


def _normalised(choices: Choices, lengths: Sequence[int]) -> float:
    return _is_best([nats / max(1, n) for nats, n in zip(choices.nats, lengths, strict=True)], choices.gold)


def _acc_mutual_info(choices: Choices) -> float:
    assert len(choices.alone) == len(choices.nats)
    return _is_best([n - a for n, a in zip(choices.nats, choices.alone, strict=True)], choices.gold)


def _perplexity(outcomes: Sequence[Outcome]) -> Estimate:
    """Of the right continuations, each of them one thing that is foreseen."""
    nats = np.array([c.nats[c.gold] for c in _choices(outcomes)], np.float64)
    value = float(np.exp(-nats.mean()))
    return Estimate(value, -value * nats)


def _sized(outcome: Outcome) -> tuple[float, int, int]:
    """Nats of a document or a right continuation, its words and bytes."""
    if isinstance(outcome, Passage):
        return outcome.nats, outcome.words, outcome.bytes
    assert isinstance(outcome, Choices)
    return outcome.nats[outcome.gold], 0, outcome.bytes[outcome.gold]


def _ratio(above: _Array, below: _Array) -> Estimate:
    """One sum over another."""
    value = float(above.sum() / below.sum())
    return Estimate(value, (above - value * below) / below.mean())


def _exponential(of: Estimate) -> Estimate:
    value = math.exp(min(of.value, 700.0))
    return Estimate(value, value * of.influence)


def _bits_per_byte(outcomes: Sequence[Outcome]) -> Estimate:
    nats, _, sizes = np.array(list(map(_sized, outcomes)), np.float64).T
    return _ratio(-nats / math.log(2), sizes)


def _byte_perplexity(outcomes: Sequence[Outcome]) -> Estimate:
    nats, _, sizes = np.array(list(map(_sized, outcomes)), np.float64).T
    return _exponential(_ratio(-nats, sizes))


def _word_perplexity(outcomes: Sequence[Outcome]) -> Estimate:
    assert all(isinstance(outcome, Passage) for outcome in outcomes)
    nats, words, _ = np.array(list(map(_sized, outcomes)), np.float64).T
    return _exponential(_ratio(-nats, words))


def _exact_match(outcomes: Sequence[Outcome]) -> Estimate:
    right = np.array([isinstance(outcome, Answer) and outcome.is_right for outcome in outcomes], np.float64)
    return Estimate(float(right.mean()), right)


def _flexible_match(outcomes: Sequence[Outcome]) -> Estimate:
    right = np.array([isinstance(o, Answer) and o.is_right_loosely for o in outcomes], np.float64)
    return Estimate(float(right.mean()), right)


def _answers(outcomes: Sequence[Outcome]) -> list[Answer]:
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(answers) == len(outcomes) > 0
    return answers


def _rouge_l(outcomes: Sequence[Outcome]) -> Estimate:
    scores = np.array([rouge_l(one.wanted, one.text) for one in _answers(outcomes)], np.float64)
    return Estimate(float(scores.mean()), scores)


def _bleu(outcomes: Sequence[Outcome]) -> Estimate:
    """Of all texts together; an order without a match moves nothing, as its share is a made one."""
    counts = [bleu_counts(one.wanted, one.text) for one in _answers(outcomes)]
    matches = np.array([one.matches for one in counts], np.float64)
    runs = np.array([one.runs for one in counts], np.float64)
    said, wanted = np.array([(one.said, one.wanted) for one in counts], np.float64).T
    whole = BleuCounts(tuple(matches.sum(0)), tuple(runs.sum(0)), said.sum(), wanted.sum())
    value = bleu(whole)
    if not value:
        return Estimate(0.0, np.zeros(len(counts)))
    found = matches.any(axis=0)
    moved = (matches[:, found] / matches[:, found].mean(0)).sum(1) - (runs / runs.mean(0)).sum(1)
    moved /= matches.shape[1]
    if whole.said < whole.wanted:
        moved += (said * wanted.mean() / said.mean() - wanted) / said.mean()
    return Estimate(value, value * moved)


def _wer(outcomes: Sequence[Outcome]) -> Estimate:
    heard = [outcome for outcome in outcomes if isinstance(outcome, Transcript)]
    assert len(heard) == len(outcomes) > 0
    errors, words = np.array([(one.errors, one.words) for one in heard], np.float64).T
    return _ratio(errors, words)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure: the kinds of items (names of classes of `tasks.task`) that it is taken of, and how."""

    kinds: frozenset[str]
    estimate: Callable[[Sequence[Outcome]], Estimate]
    is_share: bool = False
    smaller_is_better: bool = False


def _accuracy(score: Callable[[Choices], float]) -> Metric:
    return Metric(_QUESTIONS, _mean_of(score), is_share=True)


_QUESTIONS, _EXERCISES = frozenset(["Question"]), frozenset(["Exercise"])
_DOCUMENTS, _RECORDINGS = frozenset(["Document"]), frozenset(["Recording"])
METRICS: Mapping[str, Metric] = {
    "acc": _accuracy(lambda c: _is_best(c.nats, c.gold)),
    "acc_norm": _accuracy(lambda c: _normalised(c, c.characters)),
    "acc_bytes": _accuracy(lambda c: _normalised(c, c.bytes)),
    "acc_mutual_info": _accuracy(_acc_mutual_info),
    "greedy_acc": _accuracy(lambda c: float(c.greedy[c.gold])),
    "perplexity": Metric(_QUESTIONS, _perplexity, smaller_is_better=True),
    "bits_per_byte": Metric(_QUESTIONS | _DOCUMENTS, _bits_per_byte, smaller_is_better=True),
    "byte_perplexity": Metric(_QUESTIONS | _DOCUMENTS, _byte_perplexity, smaller_is_better=True),
    "word_perplexity": Metric(_DOCUMENTS, _word_perplexity, smaller_is_better=True),
    "exact_match": Metric(_EXERCISES, _exact_match, is_share=True),
    "flexible_match": Metric(_EXERCISES, _flexible_match, is_share=True),
    "rouge_l": Metric(_EXERCISES, _rouge_l, is_share=True),
    "bleu": Metric(_EXERCISES, _bleu, is_share=True),
    "wer": Metric(_RECORDINGS, _wer, is_share=True, smaller_is_better=True),
}
