"""Runs tasks on models: items from a data folder, examples before them, what came out for each.

Knows files, few-shot contexts and how a question or an exercise is put to a model. Knows none of the tasks.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import phirt
from phirt.errors import ConfigError
from phirt_quant.evaluation import Scorer
from phirt_quant.likelihood import continuation_likelihood, leading_ids, split_tokens
from phirt_quant.metrics import Answer, Choices, Outcome
from phirt_quant.tasks import read_task
from phirt_quant.tasks.task import Exercise, Item, Question, Task
from phirt_quant.text_files import read_records

_SEPARATOR = "\n\n"


@dataclasses.dataclass(frozen=True)
class Examination:
    """A task's items with their contexts complete. `shots` examples stand before each."""

    name: str
    metrics: tuple[str, ...]
    shots: int
    items: tuple[Item, ...]


def read_examination(
    name: str, data: Path, limit: int | None = None, shots: int | None = None
) -> Examination:
    """The task's items from the data folder: of at most `limit` records, spread evenly over all of them.

    Examples are drawn among the other records, the same for the same record each time.

    Raises:
        ConfigError: there is no such task, its file is missing, cannot be read, or has other fields.
    """
    task = read_task(name)
    by_record = _read_items(task, name, data)
    count = task.shots if shots is None else shots
    kept = len(by_record) if limit is None else min(limit, len(by_record))
    items: list[Item] = []
    for place in range(kept):
        index = place * len(by_record) // kept
        before = _examples(name, index, by_record, count)
        items += [
            dataclasses.replace(item, context=_SEPARATOR.join([*before, item.context]))
            for item in by_record[index]
        ]
    return Examination(name, task.metrics, count, tuple(items))


def run(
    examination: Examination,
    model: phirt.Model,
    scorers: Sequence[Scorer],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Outcome]]:
    """What came out for each item, by scorer. `model` gives tokenizer, context and end tokens for all of
    them; the first one's answers are drafts of the others'.
    """
    examiner = _Examiner(model)
    outcomes: list[list[Outcome]] = [[] for _ in scorers]
    for done, item in enumerate(examination.items):
        if on_progress is not None:
            on_progress(done, len(examination.items))
        draft: list[int] = []
        for scorer, of in zip(scorers, outcomes, strict=True):
            if isinstance(item, Question):
                of.append(examiner.ask(scorer, item))
            else:
                outcome, draft = examiner.set(scorer, item, draft)
                of.append(outcome)
    if on_progress is not None:
        on_progress(len(examination.items), len(examination.items))
    return outcomes


class _Examiner:
    """Puts items to scorers of one tokenizer."""

    def __init__(self, model: phirt.Model) -> None:
        manifest = model.manifest
        self._tokenizer = model.generator.tokenizer
        self._begin = leading_ids(manifest.path(manifest.tokenizer))
        self._nothing = self._begin or [manifest.tokens.bos]
        self._longest = manifest.geometry.context

    def ask(self, scorer: Scorer, question: Question) -> Choices:
        """The likelihood of every continuation."""
        scores = []
        for continuation in question.continuations:
            context, ids = split_tokens(self._tokenizer.encode_content, question.context, continuation)
            context = [*self._begin, *context] or self._nothing
            scores.append(continuation_likelihood(scorer, context, ids, self._longest))
        texts = [continuation.removeprefix(" ") for continuation in question.continuations]
        return Choices(
            nats=tuple(score.nats for score in scores),
            greedy=tuple(score.is_greedy for score in scores),
            characters=tuple(map(len, texts)),
            bytes=tuple(len(text.encode()) for text in texts),
            gold=question.gold,
        )

    def set(self, scorer: Scorer, exercise: Exercise, draft: list[int]) -> tuple[Answer, list[int]]:
        """The greedy answer up to the first stop, and its ids."""
        context = [*self._begin, *self._tokenizer.encode_content(exercise.context)] or self._nothing
        context = context[-max(1, self._longest - exercise.max_new_tokens) :]
        ids: list[int] = []
        text = ""
        for token in _first(scorer.answer(context, draft), exercise.max_new_tokens):
            ids.append(token)
            text = self._tokenizer.decode(ids)
            ends = [text.index(stop) for stop in exercise.stops if stop in text]
            if ends:
                text = text[: min(ends)]
                break
        return Answer(text, exercise.is_right(text)), ids


def _first(tokens: Iterator[int], count: int) -> Iterator[int]:
    """At most `count` of them, without asking for one more: each costs a run."""
    for _, token in zip(range(count), tokens, strict=False):
        yield token


def _read_items(task: Task, name: str, data: Path) -> list[list[Item]]:
    """What each record asks, of those that ask something."""
    path = _find(task, name, data)
    found = []
    for number, record in enumerate(read_records(path), start=1):
        try:
            items = list(task.items(record))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"record {number} of {path} is none of the task {name}: {error!r}; give the folder whose "
                f"{task.file} has its fields"
            ) from error
        if items:
            found.append(items)
    if not found:
        raise ConfigError(f"{path} has no records of the task {name}")
    return found


def _find(task: Task, name: str, data: Path) -> Path:
    places = [data / task.file, data / Path(task.file).name]
    for place in places:
        for path in (place, place.with_name(f"{place.name}.xz")):
            if path.is_file():
                return path
    raise ConfigError(f"{data} holds no {task.file} (or .xz of it), which the task {name} reads")


def _examples(name: str, index: int, by_record: Sequence[Sequence[Item]], count: int) -> list[str]:
    """The first items of `count` other records with their answers."""
    others = len(by_record) - 1
    if count > others:
        raise ConfigError(f"{count} examples were asked for, and the task {name} has {others} other records")
    drawn = random.Random(f"{name} {index}").sample(range(others), count)
    chosen = [by_record[place + (place >= index)][0] for place in drawn]
    return [item.context + item.target for item in chosen]
