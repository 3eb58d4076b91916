"""`phirt train finetune`: an adapter for somebody's own domain.

Knows its options and what is said at the end. The work is phirt_train's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phirt_apps.commands.train import training_progress
from phirt_apps.extras import needs_extra
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output, one_line
from phirt_apps.settings import variable

if TYPE_CHECKING:
    from phirt_train.finetuning.finetune import FinetuneResult

SUMMARY = "Train an adapter on conversations of your own."
SECTION = "Make a model"


def command(
    data: Annotated[
        Path,
        typer.Option("--data", metavar="FILE", help="JSON lines: one conversation, or one answer, a line."),
    ],
    adapter: Annotated[
        Path, typer.Option("--adapter", metavar="FOLDER", help="The adapter to write, a new folder.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="CHECKPOINT",
            envvar=variable("model"),
            show_envvar=False,
            show_default=False,
            help="The float checkpoint of the model: a folder, or an id of which a copy is kept; or a bundle "
            "that was exported here. Default: that of the model in use.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, metavar="N", help="Most passes over the rows. Default: 20."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, metavar="N", help="Rows of a step. Default: 8.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, metavar="N", help="Rank of the adapter. Default: 16.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="X", help="Peak learning rate. Default: by the model's width."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            "--held-out",
            metavar="SHARE",
            help="Rows that are not trained on, and say when to stop; 0: train on all, for all epochs. "
            "Default: 0.1.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same adapter.")
    ] = None,
) -> None:
    """Trains a LoRA adapter on your own rows, and writes it as PEFT does.

    A row is {"prompt": "…", "answer": "…"}, with "images": ["a.jpg"] or "audio": ["b.wav"] and "system" if it
    likes, or {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}. Files
    are named relative to FILE.

    A part of the rows is held out, and training ends when it learns nothing more for those. The base weights,
    and what the model does without the adapter, stay as they are. Ctrl-C keeps the state; the same command
    goes on.

    \b
      phirt train finetune --data my.jsonl --adapter my-adapter -m Phi-4-multimodal-instruct
      phirt chat -m phi4 --adapter my-adapter "And in our words?"
    """
    from phirt_apps.sources import checkpoint_of  # knows manifests, which take a moment

    out = Output()
    with needs_extra("train"), out.busy("loading torch"):
        from phirt_train.finetuning.finetune import finetune, read_settings
        from phirt_train.loop import Interrupted
    values = {
        "epochs": epochs,
        "batch": batch,
        "rank": rank,
        "peak": rate,
        "held_out": held_out,
        "seed": seed,
    }
    settings = read_settings(values)
    checkpoint, name = checkpoint_of(model, out)
    try:
        with interrupts.patient(), training_progress(out) as report:
            result = finetune(data, adapter, checkpoint, settings, base=name, report=report)
    except Interrupted as stop:
        out.notice("stopped; the state is kept: the same command goes on from there")
        raise typer.Exit(128 + stop.signal) from stop
    out.notice(_said(result))
    out.answer(f"{result.adapter}\n")


def _said(result: FinetuneResult) -> str:
    """What came of it, in a line or two."""
    steps = f"{result.rows} rows, {result.steps} steps in {result.seconds / 60:.1f} minutes"
    if result.before is None or result.after is None:
        return f"{steps}; no rows were held out, so nobody knows how well it does on others"
    losses = (
        f"loss of the {result.held_out} rows held out: {result.before:.3f} before, {result.after:.3f} after"
    )
    if result.best_step == 0:
        return (
            f"{steps}; {losses}: what is learnt from the others does not help with them, so the adapter "
            "changes nothing; give more rows, or --held-out 0 to learn them by heart"
        )
    use = f"phirt chat --adapter {one_line(str(result.adapter))}"
    return f"{steps}; {losses} step {result.best_step}; use it: {use}"
