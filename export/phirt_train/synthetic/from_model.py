"""Data that a model writes: prompts from seeds, its answers, and a review that keeps some of them.

Knows seeds, a sampler and reviewers. Knows nothing of what models or reviewers there are. Answers are kept on
disk as those of roll-outs are, so a run goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from phirt_train.data.records import Conversation, Document, TrainingMessage
from phirt_train.rollouts.drawing import OnProgress, draw
from phirt_train.rollouts.questions import Question
from phirt_train.rollouts.sampler import Sample, Sampler
from phirt_train.synthetic.review import Review, Reviewer

DROPPED_NAME = "dropped.jsonl"


@dataclasses.dataclass(frozen=True)
class Written:
    """What a model wrote to a prompt."""

    prompt: str
    text: str
    is_cut: bool

    @property
    def conversation(self) -> Conversation:
        """It as an exchange."""
        return Conversation((TrainingMessage("user", self.prompt), TrainingMessage("assistant", self.text)))

    @property
    def document(self) -> Document:
        """The text alone."""
        return Document(self.text)


def written(
    prompts: Sequence[str],
    sampler: Sampler,
    reviewers: Sequence[Reviewer],
    folder: Path,
    *,
    count: int = 1,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> list[Written]:
    """What the model writes to each prompt, `count` times, as far as it passes the review.

    What is dropped is listed in `folder`/dropped.jsonl with its reason, answers that were cut too.
    """
    questions = list({question.id: question for question in map(Question, prompts)}.values())
    drawn = draw(questions, sampler, folder, count, seed, on_progress=on_progress)
    review: Review[Written] = Review(lambda one: one.text, reviewers)
    cut: list[Written] = []
    whole = _whole(questions, drawn, cut.append)
    kept = list(review.keep(whole))
    for one in cut:
        review.drop(one.text, "was cut")
    review.write(folder / DROPPED_NAME)
    return kept


def _whole(
    questions: Sequence[Question], drawn: Sequence[Sequence[Sample]], cut: Callable[[Written], object]
) -> Iterator[Written]:
    """The answers that the model has ended itself; the others go to `cut`."""
    for question, samples in zip(questions, drawn, strict=True):
        for sample in samples:
            one = Written(question.asked[-1].content, sample.text, sample.is_cut)
            if sample.is_cut:
                cut(one)
            else:
                yield one
