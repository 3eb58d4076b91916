"""Rejection sampling (arXiv 2308.01825): which drawn answers are learnt, and which are not preferred.

Of each question whose share of right answers lies in a band, those answers are accepted that the verifier
finds right and whose written equations compute, each way of working once, together with the gold path. All
other answers are rejected, and make preference pairs with the accepted ones.

Knows questions, answers and verdicts. Knows nothing of models or files.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from phirt.errors import ConfigError
from phirt.prompt.tools import Tools, find_tool_calls
from phirt_train.data.records import Conversation, PreferencePair, ToolCall, TrainingMessage
from phirt_train.rollouts.arithmetic import equations
from phirt_train.rollouts.questions import Question
from phirt_train.rollouts.sampler import Sample
from phirt_train.rollouts.verifiers import Verifier

Verdict = Literal["right", "wrong answer", "wrong equation", "cut"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which questions count, and how many pairs each gives.

    Attributes:
        least, most: the band of the share of right answers.
        pairs: most preference pairs of a question.
    """

    least: float = 0.2
    most: float = 0.8
    pairs: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= 1:
            raise ConfigError(
                f"the band is {self.least:g} to {self.most:g}, accepted: two shares from 0 to 1, the "
                "smaller first"
            )


@dataclasses.dataclass(frozen=True)
class Judged:
    """A question with its answers and what is thought of each."""

    question: Question
    samples: tuple[Sample, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.verdicts.count("right") / len(self.verdicts)

    @property
    def right(self) -> tuple[str, ...]:
        """The gold path and the right answers, each way of working once."""
        gold = gold_answer(self.question)
        texts = [] if gold is None else [gold]
        texts += [one.text for one, said in zip(self.samples, self.verdicts, strict=True) if said == "right"]
        return tuple(_each_way_once(texts))

    @property
    def wrong(self) -> tuple[tuple[str, Verdict], ...]:
        """The other answers and why they are not right, each once."""
        pairs = zip(self.samples, self.verdicts, strict=True)
        return tuple(dict((one.text, said) for one, said in pairs if said != "right").items())


def judge(question: Question, samples: Sequence[Sample], verifier: Verifier) -> Judged:
    """What is thought of each answer. Raises ConfigError where the question lacks what the verifier needs."""
    return Judged(question, tuple(samples), tuple(_verdict(question, one, verifier) for one in samples))


def _verdict(question: Question, sample: Sample, verifier: Verifier) -> Verdict:
    if not verifier(question, sample.text):
        return "cut" if sample.is_cut else "wrong answer"
    if not all(equation.computes for equation in equations(sample.text)):
        return "wrong equation"
    # Cut behind its answer: to learn it would be to learn not to end.
    return "cut" if sample.is_cut else "right"


def gold_answer(question: Question) -> str | None:
    """The right answer that the question brings, as a model would write it."""
    return None if question.calls else question.answer


def _each_way_once(texts: Sequence[str]) -> Iterator[str]:
    """Texts with different lists of equations; where there are none, different texts."""
    seen = set()
    for text in texts:
        key = equations(text) or text.strip()
        if key not in seen:
            seen.add(key)
            yield text


def accepted(judged: Judged) -> Iterator[Conversation]:
    """The conversations to learn."""
    question = judged.question
    if question.calls:
        yield Conversation(
            (*question.asked, TrainingMessage("assistant", tool_calls=question.calls)), question.tools
        )
    for text in judged.right:
        turn = _answer_turn(question, text)
        if not question.calls or turn.content:  # bare calls are the gold path's
            yield Conversation((*question.asked, turn), question.tools)


def _answer_turn(question: Question, text: str) -> TrainingMessage:
    if not question.calls:
        return TrainingMessage("assistant", text)
    begin, calls = find_tool_calls(text, Tools.of(question.tools))
    made = tuple(ToolCall(call.name, dict(call.arguments)) for call in calls)
    return TrainingMessage("assistant", text[:begin].strip(), tool_calls=made)


def preferences(judged: Judged, most: int) -> Iterator[PreferencePair]:
    """At most so many pairs: the wrong answers in their order, each with the next of the right ones."""
    question, right = judged.question, judged.right
    if not right:
        return
    # An empty answer teaches nothing but not to be empty; a cut one, not to be long.
    wrong = [text for text, said in judged.wrong if text.strip() and said != "cut"]
    for chosen, rejected in itertools.islice(zip(itertools.cycle(right), wrong, strict=False), most):
        if chosen != rejected:
            yield PreferencePair(question.asked, chosen, rejected, question.tools)
