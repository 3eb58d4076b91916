"""The classifier that a curation uses: from a folder, or trained in the result's own, and measured on what
it was not trained on.

Knows the file's table and where texts lie. Knows nothing of how a classifier is trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import write_text
from phirt_train.curate.classifier import (
    FACTS_NAME,
    Classifier,
    Training,
    area_under_curve,
    score_all,
    train,
)
from phirt_train.curate.config import ClassifierConfig, ExamplesConfig, find_files
from phirt_train.curate.executor import Executor
from phirt_train.curate.minimize import Iteration
from phirt_train.curate.raw_texts import (
    Piece,
    corruptions,
    package_texts,
    standard_library_texts,
    write_pieces,
)
from phirt_train.curate.records import Part, TextSource, read_texts
from phirt_train.curate.shards import cut
from phirt_train.progress import Progress, Report

MEASURED_NAME = "measured.json"
_SHARD_BYTES = 4_000_000
_SPOILED_PAGES = 2000

Facts = dict[str, Any]


def prepare_classifier(
    config: ClassifierConfig | None, data: Path, out: Path, executor: Executor, report: Report
) -> tuple[Path | None, Facts]:
    """The classifier's folder, and what a report says of it; None and nothing where none is asked for.

    Raises:
        ConfigError: there is none in the folder, or it cannot be trained on what is given.
    """
    if config is None:
        return None, {}
    if config.folder is not None:
        folder = data / config.folder
        return folder, _described(Classifier(folder))
    folder = out / "classifier"
    measured = folder / MEASURED_NAME
    if not measured.exists():  # which is written last
        _train(config, data, out, executor, report)
    return folder, {**_described(Classifier(folder)), **json.loads(measured.read_bytes())}


def _train(config: ClassifierConfig, data: Path, out: Path, executor: Executor, report: Report) -> None:
    folder = out / "classifier"
    good = [_source(one, data, number, "good") for number, one in enumerate(config.positive)]
    bad = [_source(one, data, number, "bad") for number, one in enumerate(config.negative)]
    for kind in config.made:
        path = out / "work" / f"made-{kind}.jsonl"
        write_pieces(path, _made(kind, good))
        bad.append(TextSource(kind, "{text}", tuple(cut(kind, [path], _SHARD_BYTES))))
    limit = config.training.iterations

    def told(iteration: Iteration) -> None:
        report(Progress("classifier", iteration.number + 1, limit, "iterations", loss=iteration.value))

    training = train(executor, _only(good, "learnt"), _only(bad, "learnt"), config.training, folder, told)
    scores = [score_all(executor, folder, _only(kind, "held out")) for kind in (good, bad)]
    if not all(map(len, scores)):
        raise ConfigError("too few texts to hold out a tenth and measure the classifier; give it more")
    measured = {
        **_asked(training),
        "held_out": [len(one) for one in scores],
        "auc": area_under_curve(*scores),
    }
    write_text(folder / MEASURED_NAME, json.dumps(measured, indent=1) + "\n")


def _only(sources: Sequence[TextSource], part: Part) -> list[TextSource]:
    return [dataclasses.replace(one, part=part) for one in sources]


def _source(one: ExamplesConfig, data: Path, number: int, kind: str) -> TextSource:
    name = f"{kind}-{number}"
    files = find_files(data, one.files, f"the classifier's {kind} texts")
    return TextSource(name, one.template, tuple(cut(name, files, _SHARD_BYTES)))


def _made(kind: str, good: Sequence[TextSource]) -> Iterator[Piece]:
    if kind == "packages":
        return package_texts()
    if kind == "standard_library":
        return standard_library_texts()
    pages = (text for one in _only(good, "learnt") for shard in one.shards for text in read_texts(one, shard))
    return corruptions(itertools.islice(pages, _SPOILED_PAGES))


def _described(classifier: Classifier) -> Facts:
    facts = classifier.facts
    return {
        "file": FACTS_NAME,
        "features": facts.edges[-1],
        "good": facts.good,
        "bad": facts.bad,
        "loss": facts.loss,
    }


def _asked(training: Training) -> Facts:
    work = dataclasses.asdict(training.work)
    return {"iterations": training.iterations, "ended_by": training.reason, **work}
