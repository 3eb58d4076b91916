"""Conversations for the post-training of a language model, one file a skill, each with held-out ones.

chats/calls.jsonl         requests as calls of tools, and dialogues that make them
chats/summaries.jsonl     pages and stories, and what they are about
chats/following.jsonl     instructions whose fulfilment a program can check
chats/completion.jsonl    functions to go on with, and gaps in them to fill
chats/SKILL.val.jsonl     the same, held out
questions/following.jsonl the held-out instructions with their constraints, to draw answers to

Knows the data package's text and what is made of it. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from phirt.fields import Matching, Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import write_lines
from phirt_train.data.writing import plain_record, write_records
from phirt_train.preparation import PreparationTask
from phirt_train.synthetic.code import completions
from phirt_train.synthetic.instructions import as_conversation, instructions
from phirt_train.synthetic.summaries import article_summaries, story_summaries

from ..nano.text import dialogues, snips
from .held_out import alternate, asked, part


@dataclasses.dataclass(frozen=True)
class PostTraining:
    """How much is made.

    Attributes:
        each: most conversations of each skill.
        summary_characters: most of a text that is summed up.
        library: the part of Python's standard library that functions are of; empty for all of it.
    """

    each: Annotated[int, Range(2, 1_000_000)] = 4000
    summary_characters: Annotated[int, Range(100, 100_000)] = 1200
    library: Annotated[str, Matching("[a-z_/]{0,100}", "a folder of the standard library")] = ""

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        skills: dict[str, Callable[[PreparationTask], Iterator[tuple[str, dict[str, Any]]]]] = {
            "calls": _calls,
            "summaries": self._summaries,
            "completion": self._completion,
        }
        for name, make in skills.items():
            task.note(f"writing chats/{name}")
            chosen = itertools.islice(make(task), self.each)
            learnt, held = part(chosen, lambda record: asked(record["messages"]))
            _write(task, name, learnt, held)
        task.note("writing chats/following")
        senses = list(read_records(task.data / "text/wordset.train.jsonl.xz"))
        made = ((str(one.level), one) for one in instructions(senses, self.each, task.seed))
        parts = part(made, lambda one: one.asked[-1].content)
        _write(task, "following", *([plain_record(as_conversation(one)) for one in of] for of in parts))
        write_records(task.output / "questions/following.jsonl", parts[1])

    def _summaries(self, task: PreparationTask) -> Iterator[tuple[str, dict[str, Any]]]:
        text, most = task.data / "text", self.summary_characters
        stories = story_summaries(read_records(text / "stories.train.jsonl.xz"), task.seed, most)
        pages = article_summaries(read_records(text / "wikipedia.train.jsonl.xz"), task.seed, 1, most)
        return ((kind, plain_record(one)) for kind, one in alternate(stories, pages))

    def _completion(self, task: PreparationTask) -> Iterator[tuple[str, dict[str, Any]]]:
        folder = Path(sysconfig.get_paths()["stdlib"]) / self.library if self.library else None
        return (("", plain_record(one)) for one in completions(self.each, task.seed, folder))


def _calls(task: PreparationTask) -> Iterator[tuple[str, dict[str, Any]]]:
    both = alternate(snips(task.data, task.seed), dialogues(task.data, task.seed))
    return ((kind, {"messages": one}) for kind, one in both)


def _write(
    task: PreparationTask, name: str, learnt: Iterable[dict[str, Any]], held_out: Iterable[dict[str, Any]]
) -> None:
    write_lines(task.output / f"chats/{name}.jsonl", learnt)
    write_lines(task.output / f"chats/{name}.val.jsonl", held_out)
