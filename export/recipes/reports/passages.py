"""Questions that are answered from the passage that stands before them, or that it does not answer.

chats/passages.jsonl        about pages to learn from
chats/passages.val.jsonl    about pages that no file to learn from holds

Knows the data package's pages. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated

from phirt.fields import Range
from phirt_train.data.archives import read_records
from phirt_train.data.writing import write_records
from phirt_train.preparation import PreparationTask
from phirt_train.synthetic.passages import passage_rows


@dataclasses.dataclass(frozen=True)
class Passages:
    """How much is made.

    Attributes:
        each: most questions to learn from.
        characters: most of the passages before a question.
        held_out: most questions to measure with.
    """

    each: Annotated[int, Range(1, 1_000_000)] = 12000
    characters: Annotated[int, Range(100, 100_000)] = 4000
    held_out: Annotated[int, Range(1, 1_000_000)] = 200

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        task.note("writing chats/passages")
        for split, suffix, most in (("train", "", self.each), ("val", ".val", self.held_out)):
            pages = read_records(task.data / f"text/wikipedia.{split}.jsonl.xz")
            rows = (one for _, one in passage_rows(pages, task.seed, self.characters))
            write_records(task.output / f"chats/passages{suffix}.jsonl", itertools.islice(rows, most))
