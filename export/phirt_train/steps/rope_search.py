"""LongRoPE's search as a step: the rotary factors with which the model predicts longer texts best.

It makes rope.json, which a later stage names as its `rope`. Knows options and files; the search is
`phirt_train.rope_search`'s matter, what it is measured by `phirt_train.rope_fitness`'.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Annotated, Literal

from phirt.errors import ConfigError
from phirt.fields import Range, write_dataclass
from phirt.runtime.atomic_file import write_text
from phirt_export.reference import ModelConfig
from phirt_train.data.records import Document, read_records
from phirt_train.model_scores import needle_passages
from phirt_train.rope_fitness import long_passages, passage_fitness, perplexity
from phirt_train.rope_search import SearchSettings, search_long_factors, yarn_rope
from phirt_train.step import StepContext, StepKind, StepOutcome


@dataclasses.dataclass(frozen=True)
class RopeSearchOptions:
    """What is searched, by what.

    Attributes:
        context: the length that is searched for, in tokens.
        texts: a file of texts; whole documents of that length are needed where they are predicted.
        by: perplexity of documents (LongRoPE), or of passkeys hidden in them alone (LongRoPE2).
        passages: documents, or passkeys at each depth.
        search: how long; its seed is added to the step's.
    """

    context: Annotated[int, Range(2, 1 << 24)]
    texts: str
    by: Literal["documents", "needles"] = "documents"
    passages: Annotated[int, Range(1, 1 << 16)] = 5
    search: SearchSettings = dataclasses.field(default_factory=SearchSettings)

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where the length is no extension."""
        if self.context <= model.decoder.rope.original_context:
            raise ConfigError(
                f"context is {self.context}; accepted: more than the model's own "
                f"{model.decoder.rope.original_context}"
            )

    def files(self) -> Iterable[str]:
        """The texts."""
        return (self.texts,)


def search(options: RopeSearchOptions, context: StepContext) -> StepOutcome:
    """Search, and write the embedding that was found."""
    weights = context.model()
    model, encoder = weights.model(), weights.encoder
    texts = [document.text for _, document in read_records(context.path(options.texts), Document)]
    if options.by == "needles":
        passages = needle_passages(model, encoder, texts, options.context, count=options.passages)
    else:
        encoded = [one.token_ids[:-1] for one in encoder.encode_documents(texts)]
        passages = long_passages(encoded, options.context, options.passages)
    own = model.config.decoder.rope
    found = search_long_factors(
        own,
        options.context,
        passage_fitness(model, passages),
        dataclasses.replace(options.search, seed=(context.seed + options.search.seed) & 0x7FFFFFFF),
        path=context.work / "measured.jsonl",
        identity=repr((context.identity, options)),
        report=lambda progress: context.report(dataclasses.replace(progress, stage=context.step)),
    )
    write_text(context.output / "rope.json", json.dumps(write_dataclass(found.rope), indent=1) + "\n")
    figures = {
        "perplexity as it was": perplexity(model, passages),
        "by YaRN's factors": perplexity(model, passages, yarn_rope(own, options.context)),
        "by those found": found.fitness,
    }
    return StepOutcome(options.search.evaluations, figures, "individuals")


KIND = StepKind(RopeSearchOptions, search)
