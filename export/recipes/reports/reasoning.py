"""Problems with the way to their answers: to read, to answer, and to draw answers to.

kinds/thoughts.jsonl              problems and their working as texts
chats/thoughts.jsonl, .val.jsonl  the same as questions and answers
questions/thoughts.jsonl          problems of which answers are drawn, by level; in none of the files above
questions/thoughts.val.jsonl      problems to measure with, in none of the others

Knows the data package's problems and what is made here. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from phirt.fields import Range
from phirt_train.data.messages import assistant, user, write_lines
from phirt_train.data.writing import write_records
from phirt_train.preparation import PreparationTask
from phirt_train.rollouts.questions import Question
from phirt_train.synthetic.word_problems import LEVELS, word_problems

from .held_out import is_held_out, worked_problems

_HELD_OUT = 200  # problems of all levels, at most
_MOST = 10_000_000  # different problems that a level is asked for: more than any recipe takes


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """How much is made.

    Attributes:
        problems: to learn from, of each level.
        questions: to draw answers to, of each level.
    """

    problems: Annotated[int, Range(1, 1_000_000)] = 4000
    questions: Annotated[int, Range(1, 1_000_000)] = 500

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        read: list[Question] = []
        asked: list[Question] = []
        held_out: list[Question] = []
        few = max(1, min(self.questions, _HELD_OUT // len(LEVELS)))
        for level in LEVELS:
            task.note(f"writing problems of {level}")
            learnt = _problems(task.seed, level, held_out=False)
            read += itertools.islice(learnt, self.problems)
            asked += itertools.islice(learnt, self.questions)
            held_out += itertools.islice(_problems(task.seed, level, held_out=True), few)
        write_lines(task.output / "kinds/thoughts.jsonl", _texts(task, read))
        for name, chosen in (("thoughts", read), ("thoughts.val", held_out)):
            write_lines(task.output / f"chats/{name}.jsonl", _chats(chosen))
        write_records(task.output / "questions/thoughts.jsonl", asked)
        write_records(task.output / "questions/thoughts.val.jsonl", held_out)


def _problems(seed: int, level: str, *, held_out: bool) -> Iterator[Question]:
    """Different problems of a level to learn from, or to measure with, as long as there are any."""
    return (one for one in word_problems(_MOST, seed, level) if is_held_out(str(one.question)) == held_out)


def _texts(task: PreparationTask, problems: Sequence[Question]) -> Iterator[dict[str, Any]]:
    packaged = worked_problems(task.data / "text", held_out=False)
    pairs = itertools.chain(
        ((one.question, one.answer) for one in problems),
        ((record["question"], record["answer"]) for record in packaged),
    )
    return ({"text": f"Problem: {question}\nSolution: {answer}"} for question, answer in pairs)


def _chats(problems: Sequence[Question]) -> Iterator[dict[str, Any]]:
    for one in problems:
        assert one.question is not None and one.answer is not None
        yield {"messages": [user(one.question), assistant(one.answer)]}
