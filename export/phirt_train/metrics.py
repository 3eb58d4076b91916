"""What every step of a stage came to, kept: a line of JSON a step, and event files for TensorBoard where that
is installed.

Knows records of steps and the files. Knows nothing of training. A stage that goes on from a state writes
again what came after that state, so no step stands there twice.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from phirt.runtime.atomic_file import write_text
from phirt_train.progress import StepRecord

METRICS_NAME, EVENTS_NAME = "metrics.jsonl", "tensorboard"
_log = logging.getLogger("phirt.train")
_told: set[str] = set()


class Point(NamedTuple):
    """What is drawn of a step."""

    step: int
    loss: float
    rate: float


class Metrics:
    """The metrics of one stage, from a step on.

    Args:
        folder: the stage's.
        events: where its event files go.
        begin: steps that are done.
    """

    def __init__(self, folder: Path, events: Path, begin: int) -> None:
        path = folder / METRICS_NAME
        folder.mkdir(parents=True, exist_ok=True)
        known = [line for step, line in _lines(path) if step <= begin]
        write_text(path, "".join(known))
        self._file = path.open("a", encoding="utf-8")
        self._events = _event_writer(events, begin)
        self._before: tuple[int, float] | None = None

    def add(self, record: StepRecord) -> None:
        """Keep what a step came to."""
        speed = None
        if self._before is not None and record.seconds > self._before[1]:
            speed = (record.units - self._before[0]) / (record.seconds - self._before[1])
        self._before = (record.units, record.seconds)
        values = {
            "loss": record.loss,
            "rate": record.rate,
            "gradient_norm": record.gradient_norm,
            "units_per_second": speed,
        }
        line = {"step": record.step, **values, "units": record.units, "seconds": round(record.seconds, 3)}
        self._file.write(json.dumps({key: _finite(value) for key, value in line.items()}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if value is not None:
                    self._events.add_scalar(name, value, record.step)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_points(folder: Path) -> list[Point]:
    """The steps of a stage, in order."""
    found = []
    for _, line in _lines(folder / METRICS_NAME):
        values = json.loads(line)
        found.append(Point(values["step"], values["loss"] or math.nan, values["rate"]))
    return found


def notice_missing(package: str, what: str) -> None:
    """Say once that something is left out, as a package of the extra `train` is not there."""
    if package not in _told:
        _told.add(package)
        _log.warning('%s is not installed, so there are no %s; pip install "phirt[train]"', package, what)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their steps, up to one that was cut short."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                step = json.loads(line)["step"]
            except ValueError:  # the process was killed while it wrote
                return
            if not line.endswith("\n"):
                return
            yield step, line


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _event_writer(folder: Path, begin: int) -> Any:
    """TensorBoard's writer; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        notice_missing("tensorboard", "event files")
        return None
    return SummaryWriter(str(folder), purge_step=begin + 1 if begin else None)
