"""`phirt curate` from its file to its result: classifier, first pass, comparison, second pass, report.

Every shard that is done stays done: the same command goes on where it was stopped. Knows the order of things
and where they lie. Knows neither texts nor where tasks run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from phirt.errors import ConfigError
from phirt.fields import write_dataclass
from phirt.runtime.atomic_file import write_text
from phirt_train.curate.classifier_training import prepare_classifier
from phirt_train.curate.comparison import (
    KeyFile,
    States,
    drop_low_scores,
    find_duplicates,
    find_repeated_paragraphs,
    key_files,
)
from phirt_train.curate.config import CurationConfig, EvaluationConfig, SourceConfig, find_files
from phirt_train.curate.decontamination import evaluation_runs
from phirt_train.curate.duplicates import Numbers
from phirt_train.curate.examination import (
    Examination,
    ShardCounts,
    examine,
    load_evaluation,
    read_counts,
    save_evaluation,
)
from phirt_train.curate.executor import Done, Executor
from phirt_train.curate.quality import rules_of
from phirt_train.curate.records import TextSource, read_texts
from phirt_train.curate.report import CurationReport, source_report
from phirt_train.curate.shards import Shard, cut
from phirt_train.curate.writing import Writing, write_shard
from phirt_train.progress import Progress, Report, ignore

_FORMAT = 2


def curate(
    config: CurationConfig, data: Path, out: Path, executor: Executor, report: Report = ignore
) -> CurationReport:
    """Does all that the configuration asks for, and writes `out`: a folder of shards for each source, what
    was dropped, report.json and report.md.

    Raises:
        ConfigError: a file is missing or unreadable, or `out` holds the result of something else.
        WorkerLostError: tasks' processes died more often than they may.
    """
    shards = _cut_all(config, data)
    _claim(out, config, {*files_read(config, data), *(shard.path for shard in shards)})
    classifier, quality = prepare_classifier(config.classifier, data, out, executor, report)
    evaluation = _evaluation(config, data, out)
    tasks = _examinations(config, data, out, shards, evaluation, classifier)
    first = _examine_all(executor, tasks, _steps(report, "examination"))
    files = key_files(
        out / "work", [(task.stem, task.shard.source, of.kept) for task, of in zip(tasks, first, strict=True)]
    )
    states, repeated, thresholds = _compare(config, executor, files, report)
    writings = _writings(config, out, tasks, files, states, repeated)
    for name in {shard.source for shard in shards}:
        (out / name).mkdir(exist_ok=True)
        if config.length.long_from is not None:
            (out / f"{name}.long").mkdir(exist_ok=True)
    second = executor.map(write_shard, writings, _steps(report, "writing"))
    found = CurationReport(
        sources=tuple(
            source_report(
                one.name,
                [of for task, of in zip(tasks, first, strict=True) if task.shard.source == one.name],
                [of for task, of in zip(tasks, second, strict=True) if task.shard.source == one.name],
            )
            for one in config.source
        ),
        evaluation=load_evaluation(evaluation) if evaluation else (),
        classifier=quality,
        thresholds=thresholds,
        tokens_counted=config.tokenizer is not None,
        mixture=config.mixture,
    )
    write_text(out / "report.json", json.dumps(found.written(), indent=1, ensure_ascii=False) + "\n")
    write_text(out / "report.md", found.markdown())
    return found


def _cut_all(config: CurationConfig, data: Path) -> list[Shard]:
    size = max(1, int(config.shard_megabytes * 1e6))
    return [
        shard
        for one in config.source
        for shard in cut(one.name, find_files(data, one.files, f"source {one.name}"), size)
    ]


def files_read(config: CurationConfig, data: Path) -> list[str]:
    """All that the result depends on beside the sources: evaluation sets, what the classifier learns from or
    is, and the tokenizer.

    Raises:
        ConfigError: one of them is missing.
    """
    found: list[Path] = []
    for one in config.evaluation:
        found += find_files(data, one.files, f"evaluation set {one.name}")
    if (classifier := config.classifier) is not None:
        for kind, examples in (("good", classifier.positive), ("bad", classifier.negative)):
            for of in examples:
                found += find_files(data, of.files, f"the classifier's {kind} texts")
        if classifier.folder is not None and (folder := data / classifier.folder).is_dir():
            found += sorted(path for path in folder.iterdir() if path.is_file())
    if config.tokenizer is not None:
        found += find_files(data, [config.tokenizer], "'tokenizer'")
    return [str(path) for path in found]


def _claim(out: Path, config: CurationConfig, files: Iterable[str]) -> None:
    """Takes the folder for this configuration and these files."""
    stamps = {path: (Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in files}
    told = json.dumps([_FORMAT, write_dataclass(config), sorted(stamps.items())], sort_keys=True)
    fingerprint = hashlib.sha256(told.encode("utf-8")).hexdigest()
    claim = out / "work" / "claim.json"
    if claim.exists():
        if json.loads(claim.read_bytes()) != fingerprint:
            raise ConfigError(f"{out} holds what came of other settings or data; name another folder with -o")
        return
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            f"{out} is not empty, and nothing in it is of this command; name another folder with -o"
        )
    for folder in (out / "work", out / "dropped"):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(claim, json.dumps(fingerprint))


def _evaluation(config: CurationConfig, data: Path, out: Path) -> str | None:
    if not config.evaluation:
        return None
    path = out / "work" / "evaluation.npz"
    if not path.exists():
        sets = []
        for one in config.evaluation:
            source = _evaluation_source(one, data)
            texts = (text for shard in source.shards for text in read_texts(source, shard))
            sets.append(evaluation_runs(one.name, texts, config.decontamination.run))
            if not sets[-1].texts:
                raise ConfigError(
                    f"evaluation set {one.name} has no record with the fields of {one.template!r}; give "
                    "it the template of its records"
                )
        save_evaluation(path, sets)
    return str(path)


def _evaluation_source(one: EvaluationConfig, data: Path) -> TextSource:
    files = find_files(data, one.files, f"evaluation set {one.name}")
    return TextSource(one.name, one.template, tuple(Shard(one.name, str(path), 0, None, 0) for path in files))


def _examinations(
    config: CurationConfig,
    data: Path,
    out: Path,
    shards: Sequence[Shard],
    evaluation: str | None,
    classifier: Path | None,
) -> list[Examination]:
    sources: dict[str, SourceConfig] = {one.name: one for one in config.source}
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = str(find_files(data, [config.tokenizer], "'tokenizer'")[0])
    return [
        Examination(
            shard=shard,
            template=sources[shard.source].template,
            rules=rules_of(sources[shard.source].quality),
            languages=sources[shard.source].quality.languages,
            evaluation=evaluation,
            decontamination=config.decontamination,
            near=config.duplicates.near,
            tokenizer=tokenizer,
            least=config.length.least,
            most=config.length.most,
            classifier=None if classifier is None else str(classifier),
            work=str(out / "work"),
            dropped=str(out / "dropped"),
        )
        for shard in shards
    ]


def _examine_all(executor: Executor, tasks: Sequence[Examination], done: Done) -> list[ShardCounts]:
    """The counts of all shards; those that an earlier run has done are not done again."""
    known = {task.stem: read_counts(Path(task.work) / f"{task.stem}.json") for task in tasks}
    waiting = [task for task in tasks if known[task.stem] is None]
    before = len(tasks) - len(waiting)
    made = executor.map(examine, waiting, lambda count, _: done(before + count, len(tasks)))
    found = {task.stem: of for task, of in zip(waiting, made, strict=True)}
    return [known[task.stem] or found[task.stem] for task in tasks]


def _compare(
    config: CurationConfig, executor: Executor, files: tuple[KeyFile, ...], report: Report
) -> tuple[States, Numbers, dict[str, float]]:
    near = config.duplicates.near
    states = np.zeros(sum(one.count for one in files), dtype=np.uint8)
    thresholds: dict[str, float] = {}
    if config.classifier is not None:
        thresholds = drop_low_scores(files, states, config.classifier.sources, config.classifier.keep)
    find_duplicates(
        executor,
        files,
        states,
        exact=config.duplicates.documents,
        buckets=0 if near is None else near.buckets,
        done=_steps(report, "comparison"),
    )
    repeated = np.zeros((0, 2), dtype=np.int64)
    if config.duplicates.paragraphs:
        repeated = find_repeated_paragraphs(executor, files, states, _steps(report, "paragraphs"))
    return states, repeated, thresholds


def _writings(
    config: CurationConfig,
    out: Path,
    tasks: Sequence[Examination],
    files: Sequence[KeyFile],
    states: States,
    repeated: Numbers,
) -> list[Writing]:
    made = []
    for task, file in zip(tasks, files, strict=True):
        last = file.first + file.count
        inside = repeated[(repeated[:, 0] >= file.first) & (repeated[:, 0] < last)]
        made.append(
            Writing(
                stem=task.stem,
                source=file.source,
                number=task.shard.number,
                states=states[file.first : last],
                repeated=inside - np.array([file.first, 0]),
                tokenizer=task.tokenizer,
                least=config.length.least,
                long_from=config.length.long_from,
                out=str(out),
            )
        )
    return made


def _steps(report: Report, stage: str) -> Done:
    def done(count: int, total: int) -> None:
        report(Progress(stage, count, total, "shards"))

    return done
