"""`phirt curate`: data sifted by a file's rules, as somebody sees it who waits.

Knows its options and how progress is shown. The work is phirt_train's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phirt_apps.extras import needs_extra
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output
from phirt_apps.stage_progress import shown_progress

if TYPE_CHECKING:
    from phirt_train.curate.executor import Executor
    from phirt_train.progress import Progress

SUMMARY = "Sift training data: rules, duplicates, evaluation sets, quality."
SECTION = "Make a model"


def command(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", show_default=False, help="A TOML file that says what is kept."),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="The data that the file names. Default: its folder."),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("-o", "--out-dir", metavar="FOLDER", help="The result. Default: curated/NAME."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="local|ADDRESS",
            help="Work in several processes: of this machine, or of the Ray cluster at the address.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, metavar="N", help="Processes with --ray. Default: one a core."),
    ] = None,
) -> None:
    """Sifts the sources that CONFIG names, writes their shards with a report, and prints the report.

    The result is the same with any number of processes. Ctrl-C loses the shards that are being read; the same
    command goes on with the others done.

    \b
      phirt curate web.toml --data data
      phirt curate web.toml --data data -o curated/web --ray local --workers 8
    """
    out = Output()
    with needs_extra("curate"), out.busy("loading"):
        from phirt_train.curate.config import load_config
        from phirt_train.curate.pipeline import curate
    settings = load_config(config)
    folder = out_dir or Path("curated") / config.stem
    shown = shown_progress(out, _done, _line, transient=True)
    with _executor(out, ray, workers) as executor, shown as report:
        found = curate(settings, (data or config.parent).absolute(), folder.absolute(), executor, report)
    out.answer(found.markdown())


@contextlib.contextmanager
def _executor(out: Output, ray: str | None, workers: int | None) -> Iterator[Executor]:
    if ray is None:
        from phirt_apps.errors import UsageError
        from phirt_train.curate.executor import InProcess

        if workers is not None:
            raise UsageError("--workers says how many processes --ray starts; give --ray local too")
        yield InProcess()
        return
    with needs_extra("curate"), out.busy("starting workers"):
        from phirt_train.curate.ray_executor import RayExecutor

        executor = RayExecutor(ray, workers)
    interrupts.install()  # Ray puts its own handler of SIGTERM in place
    try:
        yield executor
    finally:
        executor.close()


def _done(progress: Progress) -> str:
    return f"{progress.step}/{progress.steps}"


def _line(progress: Progress) -> str:
    return f"{_done(progress)} {progress.unit}"
