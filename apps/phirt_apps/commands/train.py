"""`phirt train`: a recipe's stages, as somebody sees them who waits.

Knows its options and how training's progress is shown. The work is phirt_train's.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from phirt_apps.extras import needs_extra
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output, one_line
from phirt_apps.stage_progress import shown_progress

if TYPE_CHECKING:
    from phirt_train.progress import Progress, Report

SUMMARY = "Train a model from a recipe (needs the export extra)."
SECTION = "Make a model"


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            show_default=False,
            help="A TOML file, or the folder of a recipe.toml.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="The data that the recipe names. Default: its folder."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("-o", "--run-dir", metavar="FOLDER", help="State and results. Default: runs/NAME."),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="NAME", help="One of the recipe's scales. Default: its own sizes."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the stages and count their parameters; train nothing.")
    ] = False,
    ignore_gates: Annotated[
        bool, typer.Option("--ignore-gates", help="Go on from a stage that misses what it must reach.")
    ] = False,
    sharding: Annotated[
        Literal["none", "fsdp"],
        typer.Option("--sharding", help="Under torchrun: whole weights in every process, or dealt out."),
    ] = "none",
) -> None:
    """Runs the stages of RECIPE that are not done yet, writes a result table, and at the end a checkpoint.

    The run's folder has report.md: what each stage trained and left as it was, from how many tokens of which
    source; metrics of every step as JSON lines and for TensorBoard; pictures of the loss and the schedule.

    A recipe may name a Python file beside it, which writes its data and is run: read a stranger's first.
    Ctrl-C keeps the state; the same command goes on where it stopped. A stage that misses its gate ends the
    run, and its weights are kept.

    torchrun starts several processes, which train together with the result of one; the first reports.

    \b
      phirt train export/recipes/nano --scale base --plan
      phirt train finetune --help                    an adapter from conversations of your own
      phirt train export/recipes/nano --data data
      phirt train export/recipes/nano --data data --scale tiny -o runs/try
      torchrun --nproc-per-node 8 -m phirt train export/recipes/nano --data data --sharding fsdp
    """
    out = Output()
    if plan:
        show_plan(recipe, scale, out)
        return
    name = recipe.name if recipe.is_dir() else recipe.stem
    folder = run_dir or Path("runs") / (name if scale is None else f"{name}-{scale}")
    stopped_by = train(
        recipe, data, folder, out, scale=scale, until=until, ignore_gates=ignore_gates, sharding=sharding
    )
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)


def show_plan(recipe: Path, scale: str | None, out: Output) -> None:
    """Writes the stages of a recipe as a table, with parameters counted on no device at all."""
    with needs_extra("train"), out.busy("loading torch"):
        from phirt_train.plan import plan_table
        from phirt_train.recipe import load_recipe
    out.answer(plan_table(load_recipe(recipe, scale)))


def train(
    recipe: Path,
    data: Path | None,
    run_dir: Path,
    out: Output,
    *,
    scale: str | None = None,
    until: str | None = None,
    ignore_gates: bool = False,
    sharding: Literal["none", "fsdp"] = "none",
) -> int | None:
    """Runs the recipe and writes its result table to stdout. Returns the signal that interrupted it, if any.

    A later call with the same folder continues. Shows a progress bar on a terminal, and otherwise one line a
    minute, both on stderr.
    """
    with needs_extra("train"), out.busy("loading torch"):
        from phirt_train.loop import Interrupted
        from phirt_train.results import result_table
        from phirt_train.runner import run_recipe
    try:
        with interrupts.patient(), training_progress(out) as report:
            results = run_recipe(
                recipe,
                run_dir,
                data,
                scale=scale,
                report=report,
                until=until,
                ignore_gates=ignore_gates,
                sharding=sharding,
            )
    except Interrupted as stop:
        out.notice(f"stopped; the state is in {one_line(str(run_dir))}: the same command goes on from there")
        return stop.signal
    if int(os.environ.get("RANK", "0")) == 0:  # of the processes that torchrun has started
        out.answer(result_table(results))
        out.hint(f"the report is {one_line(str(run_dir / 'report.md'))}")
    return None


def training_progress(out: Output) -> contextlib.AbstractContextManager[Report]:
    """What is to be called with reports of progress: bars on a terminal that stay, else a line a minute."""
    return shown_progress(out, _figures, _line, transient=False)


def _line(progress: Progress) -> str:
    done = f"{progress.step}" + ("" if progress.steps is None else f"/{progress.steps}")
    return f"{done}: {_figures(progress)}"


def _figures(progress: Progress) -> str:
    if progress.loss is None or progress.rate is None or progress.remaining is None:
        return progress.activity
    minutes, seconds = divmod(int(progress.remaining), 60)
    left = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    return f"loss {progress.loss:.3f}, {progress.rate:,.0f} {progress.unit}/s, {left} left"
