"""What a curation says at the end: by source what came, what stayed, what went and why; hits of the
evaluation sets; the classifier; the mixture.

Knows counts. Knows nothing of how they came about.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phirt_train.curate.decontamination import EvaluationRuns
from phirt_train.curate.examination import ShardCounts
from phirt_train.curate.mixture import MixtureConfig, Portion, portions, table


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """One source.

    Attributes:
        documents: lines that came.
        kept: documents that stayed; one that was cut counts as its pieces.
        tokens: by source, long documents apart.
        dropped: documents by reason.
        hits, touched: runs of words and documents that an evaluation set holds, by set.
        paragraphs: that had occurred before and were cut out.
    """

    name: str
    documents: int
    kept: int
    tokens: Mapping[str, int]
    dropped: Mapping[str, int]
    hits: Mapping[str, int]
    touched: Mapping[str, int]
    paragraphs: int


@dataclasses.dataclass(frozen=True)
class CurationReport:
    """The whole."""

    sources: tuple[SourceReport, ...]
    evaluation: tuple[EvaluationRuns, ...]
    classifier: Mapping[str, Any]
    thresholds: Mapping[str, float]
    tokens_counted: bool
    mixture: MixtureConfig

    @property
    def portions(self) -> tuple[Portion, ...]:
        """What each source gives to a training run."""
        available: dict[str, int] = {}
        for one in self.sources:
            available |= {one.name: 0, **one.tokens}
        return portions(available, self.mixture)

    def written(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "sources": [dataclasses.asdict(one) for one in self.sources],
            "evaluation": [
                {
                    "name": one.name,
                    "texts": one.texts,
                    "shorter_than_a_run": one.short,
                    **self._of_set(one.name),
                }
                for one in self.evaluation
            ],
            "classifier": dict(self.classifier),
            "thresholds": dict(self.thresholds),
            "tokens_counted": self.tokens_counted,
            "mixture": [dataclasses.asdict(one) for one in self.portions],
        }

    def markdown(self) -> str:
        """For people."""
        return "\n".join(self._lines()) + "\n"

    def _of_set(self, name: str) -> dict[str, int]:
        return {
            "hits": sum(one.hits.get(name, 0) for one in self.sources),
            "documents": sum(one.touched.get(name, 0) for one in self.sources),
        }

    def _lines(self) -> Iterator[str]:
        how = "by the tokenizer" if self.tokens_counted else "estimated, four bytes each"
        yield f"# Curation\n\nTokens are counted {how}.\n"
        yield "| source | documents | kept | tokens | paragraphs cut out |\n|---|---|---|---|---|"
        for one in self.sources:
            tokens = sum(one.tokens.values())
            yield f"| {one.name} | {one.documents:,} | {one.kept:,} | {tokens:,} | {one.paragraphs:,} |"
        yield "\n## What went, and why\n\n| source | reason | documents |\n|---|---|---|"
        for one in self.sources:
            for reason, count in sorted(one.dropped.items(), key=lambda item: (-item[1], item[0])):
                yield f"| {one.name} | {reason} | {count:,} |"
        yield "\nEach document that went is listed with its reason in `dropped/`."
        if self.evaluation:
            yield "\n## Evaluation sets\n\n| set | texts | shorter than a run | runs found | documents |"
            yield "|---|---|---|---|---|"
            for of in self.evaluation:
                hits, documents = self._of_set(of.name).values()
                yield f"| {of.name} | {of.texts:,} | {of.short:,} | {hits:,} | {documents:,} |"
        if self.classifier:
            yield "\n## Classifier\n"
            yield from (f"- {name}: {value}" for name, value in self.classifier.items())
            yield from (
                f"- least score kept of {name}: {value:.4f}" for name, value in self.thresholds.items()
            )
        yield "\n## Mixture\n"
        yield table(self.portions)


def source_report(
    name: str, first: Sequence[ShardCounts], second: Sequence[tuple[ShardCounts, Mapping[str, int]]]
) -> SourceReport:
    """The sum of a source's shards."""
    written = [counts for counts, _ in second]
    tokens: Counter[str] = Counter()
    for _, of in second:
        tokens.update(of)
    return SourceReport(
        name=name,
        documents=sum(one.documents for one in first),
        kept=sum(one.kept for one in written),
        tokens=dict(tokens),
        dropped=dict(_sum([one.dropped for one in (*first, *written)])),
        hits=dict(_sum([one.hits for one in first])),
        touched=dict(_sum([one.touched for one in first])),
        paragraphs=sum(one.touched["paragraphs"] for one in written),
    )


def _sum(counters: Sequence[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counters:
        total.update(one)
    return total
