"""The first pass over a shard: what of it is kept by itself, and the keys by which it is compared with the
rest.

A task reads its shard, and writes what it keeps, what it drops with the reason, the keys of what it keeps,
and last its counts, with which the shard is done. Knows one shard. Knows nothing of the others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from phirt.errors import ConfigError
from phirt.runtime.atomic_file import atomic_write, write_text
from phirt_train.curate.classifier import opened
from phirt_train.curate.decontamination import DecontaminationConfig, EvaluationRuns, decontaminate
from phirt_train.curate.duplicates import exact_key, paragraph_keys
from phirt_train.curate.minhash import MinHashConfig, bucket_keys
from phirt_train.curate.quality import Rule, judge
from phirt_train.curate.records import usable_text
from phirt_train.curate.shards import Shard, read

_SHOWN_CHARACTERS = 120
_COUNTERS = ("dropped", "hits", "touched")
_BYTES_PER_TOKEN = 4  # of English, by the tokenizers of language models


@dataclasses.dataclass(frozen=True)
class Examination:
    """A task's input.

    Attributes:
        shard, template: what to read.
        rules, languages: see `quality.judge`.
        evaluation: the file of the evaluation sets' runs; None for none.
        decontamination: how hits are taken out.
        near: how near duplicates are found; None for not at all.
        tokenizer: a tokenizer.json; None for an estimate.
        least, most: tokens that a text may have.
        classifier: a folder; None for no scores.
        work, dropped: folders of what is written.
    """

    shard: Shard
    template: str
    rules: tuple[Rule, ...]
    languages: tuple[str, ...]
    evaluation: str | None
    decontamination: DecontaminationConfig
    near: MinHashConfig | None
    tokenizer: str | None
    least: int
    most: int
    classifier: str | None
    work: str
    dropped: str

    @property
    def stem(self) -> str:
        """How the shard's files begin."""
        return f"{self.shard.source}-{self.shard.number:05}"


@dataclasses.dataclass
class ShardCounts:
    """What became of a shard: documents and tokens, by reason and by evaluation set."""

    documents: int = 0
    kept: int = 0
    kept_tokens: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    hits: Counter[str] = dataclasses.field(default_factory=Counter)
    touched: Counter[str] = dataclasses.field(default_factory=Counter)

    def written(self) -> dict[str, Any]:
        """As JSON."""
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        plain = {"documents": self.documents, "kept": self.kept, "kept_tokens": self.kept_tokens}
        return {**plain, **counters}


def read_counts(path: Path) -> ShardCounts | None:
    """The counts that an earlier run wrote; None where the shard is not done."""
    try:
        value: Mapping[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    counted = {name: Counter(value[name]) for name in _COUNTERS}
    return ShardCounts(value["documents"], value["kept"], value["kept_tokens"], **counted)


def examine(task: Examination) -> ShardCounts:
    """Does a shard. Raises ConfigError where its file, or what it is compared with, cannot be read."""
    work, counts = Path(task.work), ShardCounts()
    rows: dict[str, list[Any]] = {"exact": [], "near": [], "paragraphs": [], "scores": [], "tokens": []}
    dropped = Path(task.dropped) / f"{task.stem}.jsonl"
    with atomic_write(work / f"{task.stem}.jsonl") as kept, atomic_write(dropped) as gone:
        for text, reason in _documents(task, counts):
            tokens = 0 if reason else count_tokens(text, task.tokenizer)
            reason = reason or _length_fault(tokens, task)
            if reason:
                counts.dropped[reason] += 1
                write_line(gone, {"reason": reason, "begins": text[:_SHOWN_CHARACTERS]})
                continue
            write_line(kept, {"text": text})
            counts.kept += 1
            counts.kept_tokens += tokens
            rows["exact"].append(exact_key(text))
            rows["near"].append(bucket_keys(text, task.near) if task.near else np.zeros(0, np.uint64))
            rows["paragraphs"].append(paragraph_keys(text))
            rows["scores"].append(opened(task.classifier).score(text) if task.classifier else 1.0)
            rows["tokens"].append(tokens)
    _write_keys(work / f"{task.stem}.npz", rows, task.near.buckets if task.near else 0)
    write_text(work / f"{task.stem}.json", json.dumps(counts.written(), ensure_ascii=False))
    return counts


def count_tokens(text: str, tokenizer: str | None) -> int:
    """Tokens of the text; without a tokenizer, a token for each four bytes."""
    if tokenizer is None:
        return -(-len(text.encode("utf-8")) // _BYTES_PER_TOKEN)
    return len(_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids)


def write_line(stream: IO[bytes], value: object) -> None:
    """Writes a record."""
    stream.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")


def save_evaluation(path: Path, sets: list[EvaluationRuns]) -> None:
    """Writes the sets' runs to one file."""
    names = np.array([one.name for one in sets])
    figures = np.array([(one.texts, one.short) for one in sets]).reshape(-1, 2)
    hashes = {f"hashes{number}": one.hashes for number, one in enumerate(sets)}
    with atomic_write(path) as stream:
        np.savez(stream, names=names, figures=figures, **hashes)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=2)
def load_evaluation(path: str) -> tuple[EvaluationRuns, ...]:
    """Reads what `save_evaluation` wrote, once in each process."""
    with np.load(path, allow_pickle=False) as file:
        figures = file["figures"].tolist()
        return tuple(
            EvaluationRuns(str(name), file[f"hashes{number}"], texts, short)
            for number, (name, (texts, short)) in enumerate(zip(file["names"], figures, strict=True))
        )


@functools.lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises plain exceptions
        raise ConfigError(f"{path} is no tokenizer: {error}; name a tokenizer.json") from error


def _documents(task: Examination, counts: ShardCounts) -> Iterator[tuple[str, str | None]]:
    """Texts, each with the reason to drop it or None; a text that is cut comes as its pieces."""
    for line in read(task.shard):
        counts.documents += 1
        text = usable_text(line, task.template)
        if text is None:
            yield "", f"unreadable: {line.fault or 'a field of the template is missing'}"
            continue
        reason = judge(text, task.rules, task.languages) if text else "empty"
        if reason or task.evaluation is None:
            yield text, reason
            continue
        sets = load_evaluation(task.evaluation)
        cleaned = decontaminate(text, sets, task.decontamination)
        for one, hits in zip(sets, cleaned.hits, strict=True):
            if hits:
                counts.hits[one.name] += hits
                counts.touched[one.name] += 1
        if cleaned.too_dirty:
            yield text, "contaminated: too many pieces"
        elif not cleaned.pieces:
            yield text, "contaminated: nothing is left"
        yield from ((piece, None) for piece in cleaned.pieces)


def _length_fault(tokens: int, task: Examination) -> str | None:
    if tokens < task.least:
        return f"length: fewer than {task.least} tokens"
    return f"length: more than {task.most} tokens" if tokens > task.most else None


def _write_keys(path: Path, rows: Mapping[str, list[Any]], buckets: int) -> None:
    count = len(rows["exact"])
    flat = np.concatenate(rows["paragraphs"]) if count else np.zeros(0, np.uint64)
    with atomic_write(path) as stream:
        np.savez(
            stream,
            exact=np.array(rows["exact"], dtype=np.uint64).reshape(count, 2),
            near=np.array(rows["near"], dtype=np.uint64).reshape(count, buckets),
            paragraphs=flat,
            paragraph_counts=np.array([len(one) for one in rows["paragraphs"]], dtype=np.int64),
            scores=np.array(rows["scores"], dtype=np.float64),
            tokens=np.array(rows["tokens"], dtype=np.int64),
        )
