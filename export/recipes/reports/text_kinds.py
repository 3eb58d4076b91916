"""Documents of the kinds that text models are trained on, one file a kind.

text/wikipedia.jsonl, text/stories.jsonl     prose, as nano reads it
text/wikipedia.val.jsonl                     prose that is held out

Knows the data package's text. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses

from phirt_train.data.messages import write_lines
from phirt_train.preparation import PreparationTask

from ..nano.text import DOCUMENTS


@dataclasses.dataclass(frozen=True)
class TextKinds:
    """All of them."""

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        for name, (file, read) in DOCUMENTS.items():
            task.note(f"unpacking {name}")
            texts = ({"text": text} for text in read(task.data / file))
            write_lines(task.output / f"text/{name}.jsonl", texts)
