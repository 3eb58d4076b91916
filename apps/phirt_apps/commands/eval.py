"""`phirt eval`: how far a bundle's predictions are from its checkpoint's or another bundle's, and how well it
does on tasks.

Knows its options. The comparison is in `evaluation`, which `phirt export` uses too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phirt.errors import ConfigError
from phirt_apps import options
from phirt_apps.models import bundle_folder
from phirt_apps.output import Output

SUMMARY = "Measure how far a bundle is from its checkpoint or another bundle."
SECTION = "Make a model"


def _tasks(incomplete: str) -> list[str]:
    """The names of tasks that begin so, for the Tab key."""
    from phirt_quant.tasks import known_tasks

    return [name for name in known_tasks() if name.startswith(incomplete)]


def command(
    bundle: options.BundleArgument = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="FOLDER", help="The checkpoint (needs the export extra), or another model."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help="Text, JSON lines, or .xz of them. Default: own sentences."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=2, metavar="N", help="How much of the text, in tokens.")
    ] = 2048,
    window: Annotated[
        int | None, typer.Option("--window", min=2, metavar="N", help="Context of text. [default: 256]")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, metavar="N", help="From window to window. Default: its length."),
    ] = None,
    image: options.Images = None,
    audio: options.Audio = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="NAME", help="A task, such as arc_easy; repeatable.", autocompletion=_tasks
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="Where the tasks' files are.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, metavar="N", help="Records of each task, spread evenly; needles of a kind."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, metavar="K", help="Examples. Default: the task's.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="NAME", help="A measure beside the task's own, as acc_bytes; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draws examples and passkeys.")] = 0,
    needles: Annotated[
        list[int] | None,
        typer.Option(
            "--needles", min=1, metavar="N", help="Passkeys hidden in N tokens of text; repeatable."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="A picture of KL by place and layer (extra plot)."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compares the predictions of MODEL with those of its checkpoint, or of another bundle, on each route;
    and scores it on tasks, beside what it is compared with.

    Each token of the text is predicted; after an image or a recording the reference's answer is. KL is in
    nats, of the reference's distribution to the bundle's. Bits a weight count codes, scales and padding. A
    checkpoint runs in float32, from half a billion weights on with its layers read from disk at every pass;
    an export of --bits 32 is faster there. What is not given of text, images and recordings is the program's
    own: sentences, rendered pictures, synthesised clips; with --task, nothing.

    Tasks are scored as lm-evaluation-harness does: log-likelihoods of continuations and of whole texts, or
    exact match of what the model writes; recordings by word error rate. Differences have the standard error
    of pairs.

    Needles are passkeys that are hidden at five depths in sentences (those of --text, where it is given) and
    asked for at the end. MODEL may be a checkpoint, too, which is measured alone.

    \b
      phirt eval phi4-int4 --against Phi-4-multimodal-instruct
      phirt eval phi4-int4 --against phi4-fp32 --text book.txt --window 2048 --stride 512
      phirt eval phi4-int4 --task arc_easy --task lambada --data benchmarks --limit 500
      phirt eval phi4-int4 --needles 1024 --needles 4096
    """
    from phirt_apps import checkpoint_evaluation, evaluation
    from phirt_apps.examinations import TaskInputs
    from phirt_apps.retrieval import NeedleInputs

    out, folder = Output(), bundle_folder(bundle)
    tasks = TaskInputs(task, data, limit, shots, seed, metric or ()) if task else None
    sought = NeedleInputs(needles, text, limit, seed) if needles else None
    alone = tasks is None and sought is None
    if checkpoint_evaluation.is_checkpoint(folder):
        if against is not None or image or audio or window is not None or stride is not None or plot:
            raise ConfigError(
                f"{folder} is a checkpoint, which is measured alone, by --text, --task and --needles; name a "
                "bundle of it, and the checkpoint by --against"
            )
        given = (text, tokens) if alone or (text is not None and sought is None) else None
        checkpoint_evaluation.evaluate_checkpoint(folder, given, tasks, sought, out, as_json=json)
        return
    inputs = None
    if alone or (text is not None and sought is None) or image or audio:
        inputs = evaluation.Inputs(text, tokens, image or (), audio or (), window, stride)
    reference = None if against is None else bundle_folder(against)
    evaluation.evaluate(folder, reference, inputs, tasks, sought, out, plot=plot, as_json=json)
