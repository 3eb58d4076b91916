"""Curation as a step: what of the data is worth learning, by rules, duplicates, evaluation sets and a quality
classifier, as `phirt curate` does it.

It makes SOURCE.jsonl for each source, with what is kept, and report.md. The options are those of a file of
`phirt curate`, but files are named as the recipe names them, evaluation sets as they lie in the user's data.
Knows options and files. What is kept is `phirt_train.curate`'s matter.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

from phirt.errors import ConfigError
from phirt_export.reference import ModelConfig
from phirt_train.curate.config import ClassifierConfig, CurationConfig, EvaluationConfig, find_files
from phirt_train.curate.executor import InProcess
from phirt_train.curate.pipeline import curate
from phirt_train.progress import Progress, Report
from phirt_train.step import StepContext, StepKind, StepOutcome


@dataclasses.dataclass(frozen=True)
class CurationOptions(CurationConfig):
    """What is kept."""

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where it needs what a recipe has no name for."""
        if self.tokenizer is not None:
            raise ConfigError("tokenizer is given, and data are curated before there is one; leave it out")
        if self.classifier is not None and self.classifier.folder is not None:
            raise ConfigError("classifier.folder is given; train one on 'positive' and 'negative' texts")

    def files(self) -> Iterable[str]:
        """Sources, and what the classifier learns from."""
        yield from (name for one in self.source for name in one.files)
        if self.classifier is not None:
            yield from (name for one in self.classifier.positive for name in one.files)
            yield from (name for one in self.classifier.negative for name in one.files)

    def files_beside(self, folder: Path) -> Iterable[Path]:
        """The evaluation sets, as they lie in the user's data."""
        return [Path(name) for one in self.evaluation for name in _found(one, folder).files]


def sift(options: CurationOptions, context: StepContext) -> StepOutcome:
    """Curate, and put each source's shards into one file."""
    work = context.work / "curated"
    settings = _placed(options, context)
    found = curate(settings, context.source, work, InProcess(), _report_of(context))
    figures: dict[str, float] = {}
    for source in found.sources:
        with (context.output / f"{source.name}.jsonl").open("wb") as out:
            for shard in sorted((work / source.name).glob("*.jsonl")):
                with shard.open("rb") as part:
                    shutil.copyfileobj(part, out)
        figures[f"{source.name} kept"] = source.kept / max(1, source.documents)
        for reason, count in sorted(source.dropped.items(), key=lambda one: -one[1]):
            figures[f"dropped ({reason})"] = figures.get(f"dropped ({reason})", 0) + count
        if hits := sum(source.hits.values()):
            figures[f"{source.name} runs of evaluation sets"] = hits
    if "auc" in found.classifier:
        figures["classifier AUC"] = found.classifier["auc"]
    shutil.copyfile(work / "report.md", context.output / "report.md")
    return StepOutcome(sum(source.kept for source in found.sources), figures, "documents")


def _report_of(context: StepContext) -> Report:
    """Progress as that of the step, part by part."""

    def report(progress: Progress) -> None:
        activity = progress.activity or progress.stage
        context.note(activity, progress.step, progress.steps, progress.unit)

    return report


def _placed(options: CurationOptions, context: StepContext) -> CurationConfig:
    """The options with every file where it lies."""

    def lying(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(str(context.path(name).absolute()) for name in names)

    def examples(classifier: ClassifierConfig) -> ClassifierConfig:
        good, bad = (
            tuple(dataclasses.replace(one, files=lying(one.files)) for one in of)
            for of in (classifier.positive, classifier.negative)
        )
        return dataclasses.replace(classifier, positive=good, negative=bad)

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(CurationConfig)}
    given["source"] = tuple(dataclasses.replace(one, files=lying(one.files)) for one in options.source)
    given["classifier"] = None if options.classifier is None else examples(options.classifier)
    given["evaluation"] = tuple(_found(one, context.source) for one in options.evaluation)
    return CurationConfig(**given)


def _found(one: EvaluationConfig, folder: Path) -> EvaluationConfig:
    """An evaluation set with the files that its names and patterns stand for; one that stands for none is an
    error: data would be called clean of it.
    """
    found = find_files(folder, one.files, f"evaluation set {one.name}")
    return dataclasses.replace(one, files=tuple(str(path.absolute()) for path in found))


KIND = StepKind(CurationOptions, sift, needs_model=False)
