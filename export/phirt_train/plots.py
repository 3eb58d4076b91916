"""Pictures of a run: the loss of every step, and the schedule of the learning rate, stage after stage.

Knows how figures are drawn. Knows nothing of recipes; without matplotlib nothing is drawn, and that is said
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from phirt_train.metrics import Point, notice_missing

LOSS_NAME, SCHEDULE_NAME = "loss.png", "schedule.png"
_MOST_POINTS = 2000  # of a stage's line
_WINDOW = 50  # of a stage's smoothed line: so many of them


def draw_run(points: Mapping[str, Sequence[Point]], folder: Path) -> None:
    """Write both pictures of the stages' steps, by the stages' names in order."""
    drawn = {name: some for name, some in points.items() if some}
    if not drawn:
        return
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        notice_missing("matplotlib", "pictures of the loss and the schedule")
        return
    panels = {LOSS_NAME: ("loss", 1), SCHEDULE_NAME: ("learning rate", 2)}
    for name, (label, column) in panels.items():
        with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(7.5, 3.4), dpi=150, layout="constrained")
            axes = figure.subplots()
            begin = 0
            for number, (stage, some) in enumerate(drawn.items()):
                stride = max(1, len(some) // _MOST_POINTS)
                steps = [begin + point.step for point in some[::stride]]
                values = [float(point[column]) for point in some[::stride]]
                color = f"C{number % 10}"
                if column == 1:
                    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                    values = _smoothed(values)
                axes.plot(steps, values, color=color, label=stage, linewidth=1.4)
                begin += some[-1].step
            axes.set_xlabel("steps")
            axes.set_ylabel(label)
            axes.legend(frameon=False, fontsize=7, ncols=2)
            figure.savefig(folder / name)


def _smoothed(values: Sequence[float]) -> list[float]:
    """A running mean, whose weight falls by a part of the line's length."""
    keep = max(0.0, 1 - _WINDOW / max(_WINDOW, len(values)))
    result: list[float] = []
    for value in values:
        result.append(value if not result else keep * result[-1] + (1 - keep) * value)
    return result
