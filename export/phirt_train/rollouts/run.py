"""A whole run: questions in, files out.

accepted.jsonl   conversations to learn              {"messages": [...]}
rejected.jsonl   answers that are not right, and why {"prompt": [...], "answer": ..., "reason": ...}
pairs.jsonl      preferences, where they are wanted  {"prompt": [...], "chosen": ..., "rejected": ...}
report.json      how often answers are right, by level
samples.jsonl    all that was drawn, from which a run goes on

Knows the order of the parts and the names of files. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from phirt.runtime.atomic_file import write_text
from phirt_train.data.messages import write_lines
from phirt_train.data.writing import plain_record
from phirt_train.rollouts.drawing import OnProgress, draw
from phirt_train.rollouts.questions import Question
from phirt_train.rollouts.report import LevelReport, is_in_band, report
from phirt_train.rollouts.sampler import Sample, Sampler
from phirt_train.rollouts.selection import Judged, Selection, accepted, judge, preferences
from phirt_train.rollouts.verifiers import Verifier


def roll_out(
    questions: Sequence[Question],
    sampler: Sampler,
    verifier: Verifier,
    folder: Path,
    *,
    count: int,
    seed: int = 0,
    selection: Selection | None = None,
    with_pairs: bool = False,
    media: Path = Path(),
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> dict[str, LevelReport]:
    """Draws what is missing, judges all, and writes the files. Returns the figures by level.

    Raises:
        ConfigError: a question lacks what the verifier needs, or the folder belongs to another run.
    """
    for question in questions:
        judge(question, (Sample(""),), verifier)  # refused before anything is drawn
    drawn = draw(
        questions, sampler, folder, count, seed, media=media, workers=workers, on_progress=on_progress
    )
    judged = [judge(question, samples, verifier) for question, samples in zip(questions, drawn, strict=True)]
    return write_selection(judged, folder, selection or Selection(), with_pairs=with_pairs)


def write_selection(
    judged: Sequence[Judged], folder: Path, selection: Selection, *, with_pairs: bool
) -> dict[str, LevelReport]:
    """Writes what is accepted, rejected and preferred of judged questions."""
    kept = [one for one in judged if is_in_band(one, selection)]
    learnt = {one.question.id: list(accepted(one)) for one in kept}
    pairs = {one.question.id: list(preferences(one, selection.pairs)) for one in kept if with_pairs}
    counts = [(len(learnt.get(one.question.id, ())), len(pairs.get(one.question.id, ()))) for one in judged]
    figures = report(judged, selection, counts)
    write_lines(folder / "accepted.jsonl", (plain_record(chat) for of in learnt.values() for chat in of))
    write_lines(folder / "rejected.jsonl", (record for one in kept for record in _rejected(one)))
    if with_pairs:
        write_lines(folder / "pairs.jsonl", (plain_record(pair) for of in pairs.values() for pair in of))
    plain = {level: dataclasses.asdict(one) for level, one in figures.items()}
    write_text(folder / "report.json", json.dumps({"levels": plain}, indent=2) + "\n")
    return figures


def _rejected(judged: Judged) -> Iterable[dict[str, Any]]:
    question = judged.question
    prompt = [plain_record(turn) for turn in question.asked]
    for text, reason in judged.wrong:
        yield {"prompt": prompt, "answer": text, "reason": reason, "level": question.level, "id": question.id}
