"""The second pass over a shard: writes what stays, long documents apart, and lists what went.

Knows one shard and what the comparison found for it. Knows nothing of why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from phirt.runtime.atomic_file import atomic_write, write_text
from phirt_train.curate.comparison import KEPT, REASONS, States
from phirt_train.curate.duplicates import Numbers, without_paragraphs
from phirt_train.curate.examination import ShardCounts, count_tokens, write_line
from phirt_train.curate.mixture import LONG_SUFFIX

_SHOWN_CHARACTERS = 120


@dataclasses.dataclass(frozen=True, eq=False)
class Writing:
    """A task's input.

    Attributes:
        stem, source, number: the shard.
        states: of its documents.
        repeated: its documents' paragraphs that go: rows of document, counted within the shard, and
        paragraph. tokenizer, least, long_from: see CurationConfig.
        out: the result's folder.
    """

    stem: str
    source: str
    number: int
    states: States
    repeated: Numbers
    tokenizer: str | None
    least: int
    long_from: int | None
    out: str


def write_shard(task: Writing) -> tuple[ShardCounts, dict[str, int]]:
    """Writes the shard's files. Returns what went now, and tokens by source, its long documents' apart."""
    out, counts = Path(task.out), ShardCounts()
    tokens: Counter[str] = Counter()
    names = [task.source, *([task.source + LONG_SUFFIX] if task.long_from else [])]
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(atomic_write(shard_path(out, name, task.number))) for name in names
        }
        gone = stack.enter_context(atomic_write(out / "dropped" / f"{task.stem}.compared.jsonl"))
        for text, state, repeated in _documents(task):
            counts.documents += 1
            left = without_paragraphs(text, repeated) if repeated else text
            size = count_tokens(left, task.tokenizer)
            reason = REASONS.get(state) or _nothing_left(left, repeated, size, task.least)
            if reason:
                counts.dropped[reason] += 1
                write_line(gone, {"reason": reason, "begins": text[:_SHOWN_CHARACTERS]})
                continue
            name = names[-1] if task.long_from and size >= task.long_from else task.source
            counts.kept += 1
            tokens[name] += size
            write_line(files[name], {"text": left})
    counts.kept_tokens = sum(tokens.values())
    counts.touched["paragraphs"] = int(np.sum(task.states[task.repeated[:, 0]] == KEPT))
    facts = {"counts": counts.written(), "tokens": dict(tokens)}
    write_text(out / "work" / f"{task.stem}.written.json", json.dumps(facts, ensure_ascii=False))
    return counts, dict(tokens)


def shard_path(out: Path, name: str, number: int) -> Path:
    """Where a shard of the result lies."""
    return out / name / f"{number:05}.jsonl"


def _nothing_left(left: str, repeated: tuple[int, ...], size: int, least: int) -> str | None:
    if repeated and (not left or size < least):
        return "duplicate: its paragraphs"
    return None


def _documents(task: Writing) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Each kept document of the first pass with its state and the numbers of its repeated paragraphs."""
    repeated: dict[int, list[int]] = {}
    for document, paragraph in task.repeated.tolist():
        repeated.setdefault(document, []).append(paragraph)
    path = Path(task.out) / "work" / f"{task.stem}.jsonl"
    with path.open("rb") as lines:
        for number, (line, state) in enumerate(zip(_read(lines), task.states.tolist(), strict=True)):
            yield line, state, tuple(repeated.get(number, ()))


def _read(lines: IO[bytes]) -> Iterator[str]:
    for line in lines:
        yield str(json.loads(line)["text"])
