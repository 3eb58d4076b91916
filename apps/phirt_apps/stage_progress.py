"""Reports of progress by stages, as somebody sees them who waits: bars on a terminal, else lines.

Knows stages, steps and time. What is written beside them is the command's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TaskID, TextColumn

from phirt_apps.output import Output, one_line

if TYPE_CHECKING:
    from phirt_train.progress import Progress, Report

    Figures = Callable[[Progress], str]

_LOG_EVERY_SECONDS = 60.0


@contextlib.contextmanager
def shown_progress(out: Output, in_bar: Figures, in_line: Figures, *, transient: bool) -> Iterator[Report]:
    """What is to be called with reports of progress.

    Args:
        out: where they are shown.
        in_bar: what stands behind a stage's bar.
        in_line: what stands behind a stage's name in a line, where there is no terminal: when the stage
            begins, when it ends, and once a minute between.
        transient: whether the bars vanish at the end.
    """
    if not out.notices_on_terminal:
        yield _LogLines(out, in_line)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with out.bars(*columns, transient=transient) as bars:
        tasks: dict[str, TaskID] = {}

        def report(progress: Progress) -> None:
            stage, total = progress.stage, progress.steps
            if stage not in tasks:
                tasks[stage] = bars.add_task(one_line(stage), total=total, figures="")
            shown = one_line(in_bar(progress))
            bars.update(tasks[stage], total=total, completed=progress.step, figures=shown)

        yield report


class _LogLines:
    """Writes a line when a stage begins, ends, and once a minute between."""

    def __init__(self, out: Output, figures: Figures) -> None:
        self._out, self._figures = out, figures
        self._stage = ""
        self._written = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        due = progress.stage != self._stage or progress.step == progress.steps
        if due or now - self._written >= _LOG_EVERY_SECONDS:
            self._out.notice(f"{one_line(progress.stage)} {one_line(self._figures(progress))}")
            self._stage, self._written = progress.stage, now
