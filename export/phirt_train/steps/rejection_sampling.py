"""Rejection sampling as a step: answers of the model to questions, drawn through the runtime, verified, and
sorted into what is learnt next and what is not preferred.

It makes accepted.jsonl (conversations), pairs.jsonl (preferences) and rejected.jsonl, as far as there are
any. Knows options and files. What is right and what is kept is `phirt_train.rollouts`' matter.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from typing import Annotated

import phirt
from phirt.fields import Range
from phirt_export.reference import ModelConfig
from phirt_train.rollouts.questions import read_questions
from phirt_train.rollouts.report import ALL
from phirt_train.rollouts.run import roll_out
from phirt_train.rollouts.sampler import BundleSampler
from phirt_train.rollouts.selection import Selection
from phirt_train.rollouts.verifiers import find_verifier
from phirt_train.stage import Probability
from phirt_train.step import StepContext, StepKind, StepOutcome

_MADE = ("accepted.jsonl", "pairs.jsonl", "rejected.jsonl", "report.json")
_Count = Annotated[int, Range(1, 1 << 20)]


@dataclasses.dataclass(frozen=True)
class RejectionSamplingOptions:
    """What is asked, how, and which answers are kept.

    Attributes:
        questions: a file of questions with their answers (`rollouts.questions`).
        limit: most questions, spread evenly over the file.
        samples: answers to each.
        temperature, max_new_tokens: of the answers.
        verifier: a name of `rollouts.verifiers`.
        least, most: questions count whose share of right answers lies between.
        pairs: most preference pairs of a question.
    """

    questions: str
    limit: _Count | None = None
    samples: _Count = 8
    temperature: Annotated[float, Range(0.0, 10.0)] = 0.7
    max_new_tokens: _Count = 128
    verifier: str = "number"
    least: Probability = 0.2
    most: Probability = 0.8
    pairs: _Count = 4

    def __post_init__(self) -> None:
        find_verifier(self.verifier)
        self.selection()

    def selection(self) -> Selection:
        """Which questions count."""
        return Selection(self.least, self.most, self.pairs)

    def check(self, model: ModelConfig) -> None:
        """Every model can answer."""

    def files(self) -> Iterable[str]:
        """The questions."""
        return (self.questions,)


def sample(options: RejectionSamplingOptions, context: StepContext) -> StepOutcome:
    """Draw what is missing, judge all, and write the files."""
    path, drawn = context.path(options.questions), context.work / "answers"
    config = phirt.GenerationConfig(
        max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=context.seed
    )
    with phirt.load(context.bundle()) as model:
        levels = roll_out(
            read_questions(path, options.limit),
            BundleSampler(model, config),
            find_verifier(options.verifier),
            drawn,
            count=options.samples,
            seed=context.seed,
            selection=options.selection(),
            with_pairs=True,
            media=path.parent,
            on_progress=lambda done, total: context.note("drawing answers", done, total, "questions"),
        )
    for name in _MADE:
        if (drawn / name).stat().st_size:  # a stage names as optional what may come to nothing
            shutil.copyfile(drawn / name, context.output / name)
    every = levels[ALL]
    figures = {f"{level} right": one.p for level, one in levels.items()}
    figures |= {"questions in band": every.in_band, "accepted": every.accepted, "pairs": every.pairs}
    return StepOutcome(every.samples, figures, "answers")


KIND = StepKind(RejectionSamplingOptions, sample)
