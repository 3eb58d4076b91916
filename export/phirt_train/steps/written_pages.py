"""Pages that the model of an earlier stage writes: it goes on with the beginnings of texts, and a review by
rules and by the model's own word keeps some.

It makes pages.jsonl, texts that a later stage may read, where any are kept, and dropped.jsonl with the
reasons. Knows options and files. How a text is continued and reviewed is `phirt_train.rollouts`' and
`phirt_train.synthetic`'s matter.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from typing import Annotated

import phirt
from phirt.errors import ConfigError
from phirt.fields import Range
from phirt_export.reference import ModelConfig
from phirt_train.data.messages import write_lines
from phirt_train.data.records import Document, read_records
from phirt_train.rollouts.continuation import ContinuationSampler
from phirt_train.stage import Probability
from phirt_train.step import StepContext, StepKind, StepOutcome
from phirt_train.synthetic.from_model import DROPPED_NAME, written
from phirt_train.synthetic.likelihood import bits_of
from phirt_train.synthetic.review import (
    few_letters,
    length,
    likely,
    repetitive,
    seen_before,
    strange_words,
    unfilled,
    words_of,
)

PAGES_NAME = "pages.jsonl"
_Count = Annotated[int, Range(1, 1 << 20)]
_Bits = Annotated[float, Range(0.0, 100.0)]


@dataclasses.dataclass(frozen=True)
class WrittenPagesOptions:
    """What is begun, how it is continued, and what is kept.

    Attributes:
        beginnings: a file of texts; of each its first `words` words are given.
        words: see `beginnings`.
        limit: most texts, spread evenly over the file.
        samples: continuations of each.
        temperature, max_new_tokens: of the continuations.
        least_words, most_words: of a continuation that is kept.
        least_bits, most_bits: that a byte of it may cost the model: what is cheaper says nothing new, what is
            dearer makes no sense to it.
        most_strange: most of its words that no text of the file has.
    """

    beginnings: str
    words: _Count = 16
    limit: _Count | None = None
    samples: _Count = 1
    temperature: Annotated[float, Range(0.0, 10.0)] = 0.8
    max_new_tokens: _Count = 256
    least_words: _Count = 20
    most_words: _Count = 2000
    least_bits: _Bits = 0.1
    most_bits: _Bits = 3.0
    most_strange: Probability = 0.15

    def __post_init__(self) -> None:
        for name in ("words", "bits"):
            least, most = getattr(self, f"least_{name}"), getattr(self, f"most_{name}")
            if least > most:
                raise ValueError(f"least_{name} is {least}, above most_{name}, {most}")

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the model's context is too short for what is to be written."""
        context = model.decoder.rope.context
        if self.max_new_tokens >= context:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens}, and the model's context has {context}; give fewer"
            )

    def files(self) -> Iterable[str]:
        """The texts whose beginnings are given."""
        return (self.beginnings,)


def write(options: WrittenPagesOptions, context: StepContext) -> StepOutcome:
    """Draw what is missing, review all, and write the files."""
    texts = [document.text for _, document in read_records(context.path(options.beginnings), Document)]
    limit = min(options.limit or len(texts), len(texts))
    chosen = [texts[index * len(texts) // limit] for index in range(limit)]
    sources: dict[str, list[str]] = {}
    for text in chosen:
        sources.setdefault(beginning(text, options.words), []).append(text)
    config = phirt.GenerationConfig(
        max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=context.seed
    )
    drawn = context.work / "written"
    with phirt.load(context.bundle()) as model:
        kept = written(
            list(sources),
            ContinuationSampler(model, config),
            (
                length(options.least_words, options.most_words),
                unfilled,
                repetitive,
                few_letters,
                strange_words(words_of(texts), options.most_strange),
                seen_before(),
                likely(bits_of(model), options.least_bits, options.most_bits),
            ),
            drawn,
            count=options.samples,
            seed=context.seed,
            on_progress=lambda done, total: context.note("writing", done, total, "pages"),
        )
    new = [one for one in kept if not any(one.text.strip() in text for text in sources[one.prompt])]
    if new:  # a stage names the file as optional where it may come to nothing
        lines = ({"text": one.prompt + one.text} for one in new)
        write_lines(context.output / PAGES_NAME, lines)
    shutil.copyfile(drawn / DROPPED_NAME, context.output / DROPPED_NAME)
    every = len(sources) * options.samples
    figures = {"pages kept": len(new) / every, "pages copied": (len(kept) - len(new)) / every}
    return StepOutcome(len(new), figures, "pages")


def beginning(text: str, words: int) -> str:
    """The first words of a text, as they stand there."""
    rest = text
    for _ in range(words):
        rest = rest.lstrip()
        rest = rest[len(rest.split(maxsplit=1)[0]) :] if rest else rest
    return text[: len(text) - len(rest)]


KIND = StepKind(WrittenPagesOptions, write)
