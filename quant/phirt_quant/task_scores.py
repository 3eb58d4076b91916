"""Runs tasks on models: items from a data folder, examples before them, what came out for each.

Knows files and few-shot contexts. Knows none of the tasks, and nothing of how an item is put to a model.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from phirt.errors import ConfigError
from phirt_quant.evaluation import Scorer
from phirt_quant.examiner import Examiner, TextForm
from phirt_quant.media_files import read_media
from phirt_quant.metrics import METRICS, Outcome
from phirt_quant.tasks import read_task
from phirt_quant.tasks.task import Exercise, Item, Question, Recording, Task
from phirt_quant.text_files import read_records

_SEPARATOR = "\n\n"
_MUTUAL = "acc_mutual_info"


@dataclasses.dataclass(frozen=True)
class Examination:
    """A task's items with their contexts complete. `shots` examples stand before each."""

    name: str
    metrics: tuple[str, ...]
    shots: int
    items: tuple[Item, ...]


def read_examination(
    name: str,
    data: Path,
    limit: int | None = None,
    shots: int | None = None,
    *,
    seed: int = 0,
    metrics: Sequence[str] = (),
) -> Examination:
    """The task's items from the data folder: of at most `limit` records, spread evenly over all of them.

    Examples are drawn from the task's file of examples, or else among its other records; the same for the
    same record and seed each time, and never one that asks and answers what the item does. `metrics` are
    measured beside the task's own.

    Raises:
        ConfigError: there is no such task or metric, its file is missing, cannot be read, or has other
            fields, or there are too few examples.
    """
    task = read_task(name)
    path = _find(task.file, data)
    if path is None:
        raise ConfigError(f"{data} holds no {task.file} (or .xz of it), which the task {name} reads")
    by_record = _read_items(task, name, path, task.file)
    count = task.shots if shots is None else shots
    drawer = _Drawer(task, name, data, by_record, count, seed)
    kept = len(by_record) if limit is None else min(limit, len(by_record))
    items: list[Item] = []
    for place in range(kept):
        index = place * len(by_record) // kept
        items += [_complete(item, drawer.examples(index)) for item in by_record[index]]
    return Examination(name, _metrics(task, name, by_record, metrics), count, _with_media(items, path))


def run(
    examination: Examination,
    form: TextForm,
    scorers: Sequence[Scorer],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Outcome]]:
    """What came out for each item, by scorer. All of them have the text of `form`; the first one's answers
    are drafts of the others'.
    """
    examiner = Examiner(form, needs_alone=_MUTUAL in examination.metrics)
    outcomes: list[list[Outcome]] = [[] for _ in scorers]
    for done, item in enumerate(examination.items):
        if on_progress is not None:
            on_progress(done, len(examination.items))
        draft: list[int] = []
        for scorer, of in zip(scorers, outcomes, strict=True):
            outcome, draft = examiner.put(scorer, item, draft)
            of.append(outcome)
    if on_progress is not None:
        on_progress(len(examination.items), len(examination.items))
    return outcomes


class _Drawer:
    """Draws the examples before each record's items."""

    def __init__(
        self, task: Task, name: str, data: Path, by_record: list[list[Item]], count: int, seed: int
    ) -> None:
        self._name, self._count, self._seed, self._asked = name, count, seed, by_record
        path = _find(task.examples, data) if count and task.examples else None
        self._is_own = path is None
        source = by_record if path is None else _read_items(task, name, path, task.examples)
        self._source = [items[0] for items in source] if count else []
        if count and not isinstance(self._source[0], Question | Exercise):
            raise ConfigError(f"the task {name} takes no examples; leave --shots out, or give 0")

    def examples(self, index: int) -> list[str]:
        """The examples before the items of one record."""
        if not self._count:
            return []
        asked = {_shown(item) for item in self._asked[index]}
        places = [place for place in range(len(self._source)) if not self._is_own or place != index]
        random.Random(f"{self._seed} {self._name} {index}").shuffle(places)
        found: list[str] = []
        for place in places:
            text = _shown(self._source[place])
            if text not in asked and text not in found:
                found.append(text)
            if len(found) == self._count:
                return found
        raise ConfigError(
            f"{self._count} examples were asked for, and the task {self._name} has {len(found)} other records"
        )


def _shown(item: Item) -> str:
    """An item with its answer."""
    assert isinstance(item, Question | Exercise)
    return item.context + item.target


def _complete(item: Item, examples: Sequence[str]) -> Item:
    if not isinstance(item, Question | Exercise):
        return item
    return dataclasses.replace(item, context=item.preface + _SEPARATOR.join([*examples, item.context]))


def _metrics(
    task: Task, name: str, by_record: Sequence[Sequence[Item]], more: Sequence[str]
) -> tuple[str, ...]:
    """The task's measures and those that were asked for, which must suit its items."""
    kind = type(by_record[0][0])
    suit = {metric for metric, of in METRICS.items() if kind.__name__ in of.kinds}
    if strange := [metric for metric in more if metric not in suit]:
        raise ConfigError(
            f"the task {name} has no measure {strange[0]!r:.80}; choose from {', '.join(sorted(suit))}"
        )
    return tuple(dict.fromkeys([*task.metrics, *more]))


def _with_media(items: Sequence[Item], path: Path) -> tuple[Item, ...]:
    """The items with the bytes of their recordings."""
    names = [item.file for item in items if isinstance(item, Recording)]
    media = read_media(path, names) if names else {}
    return tuple(
        dataclasses.replace(item, audio=media[item.file]) if isinstance(item, Recording) else item
        for item in items
    )


def _read_items(task: Task, name: str, path: Path, file: str) -> list[list[Item]]:
    """What each record asks, of those that ask something."""
    found = []
    for number, record in enumerate(read_records(path), start=1):
        try:
            items = list(task.items(record))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"record {number} of {path} is none of the task {name}: {error!r}; give the folder whose "
                f"{file} has its fields"
            ) from error
        if items:
            found.append(items)
    if not found:
        raise ConfigError(f"{path} has no records of the task {name}")
    return found


def _find(file: str, data: Path) -> Path | None:
    places = [data / file, data / Path(file).name]
    for place in places:
        for path in (place, place.with_name(f"{place.name}.xz")):
            if path.is_file():
                return path
    return None
