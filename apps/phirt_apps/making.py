"""The commands of someone with a checkpoint or a recipe: `phirt export`, `phirt eval`, `phirt train`.

Knows their options, help and wiring. The work is in the modules beside this one, which are imported when
their command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .border import INTERRUPTED
from .show import Output


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", show_default=False, help="Folder of a checkpoint.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="BUNDLE", help="The folder to write; a bundle is replaced."),
    ],
    target: options.Targets = None,
    bits: options.Bits = 4,
    block_size: options.BlockSize = None,
    adapter_bits: options.AdapterBits = 8,
    encoder_bits: options.EncoderBits = 8,
    method: options.Method = "rtn",
    bits_per_weight: options.BitsPerWeight = None,
    kv: options.KV = "float32",
    calibration: options.Calibration = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The bundle's name. Default: the checkpoint's."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Writes CHECKPOINT as a bundle that phirt runs: graphs, quantized weights, tokenizer, manifest.

    The bundle appears under its name when it is complete; memory stays bounded however large the checkpoint.
    Ctrl-C keeps the weights that are finished; the same command goes on where it stopped, once it has looked
    at the calibration data again.

    Calibration data should be like what the model will see: text for its text, images and recordings for
    their routes. A line of JSON lines is {"text": ...}, or a turn {"system": ..., "prompt": ...,
    "image": ..., "audio": ..., "answer": ...}. With it, the finished bundle is compared with the checkpoint
    as 'phirt eval' does it. --json has the error of each tensor.

    \b
      phirt export runs/nano/checkpoint -o nano
      phirt export Phi-4-multimodal-instruct -o phi4 --method gptq --calibration samples/
      phirt export runs/nano/checkpoint -o nano-fp32 --bits 32
    """
    from . import exporting

    if not exporting.export(
        checkpoint,
        output,
        Output(),
        targets=target or ["cpu"],
        bits=bits,
        block_size=block_size,
        adapter_bits=adapter_bits,
        encoder_bits=encoder_bits,
        method=method,
        bits_per_weight=bits_per_weight,
        kv=kv,
        calibration=calibration or (),
        name=name,
        as_json=json,
    ):
        raise typer.Exit(INTERRUPTED)


def evaluate(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", show_default=False, help="Folder of an exported model.")
    ],
    against: Annotated[
        Path,
        typer.Option(
            "--against", metavar="FOLDER", help="The checkpoint (needs the export extra), or another bundle."
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Text to predict. Default: the program's sentences."),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=2, metavar="N", help="How much of the text, in tokens.")
    ] = 2048,
    image: options.Images = None,
    audio: options.Audio = None,
    json: options.Json = False,
) -> None:
    """Compares the predictions of BUNDLE with those of its checkpoint, or of another bundle, on each route.

    Text is predicted token by token; after an image or a recording the reference's answer is. KL is in nats,
    of the reference's distribution to the bundle's. Bits a weight count codes, scales and padding. A
    checkpoint runs in float32 and needs four bytes of memory a weight; when that is too much, compare with an
    export of --bits 32. What is not given of text, images and recordings is the program's own: sentences,
    rendered pictures, synthesised clips.

    \b
      phirt eval phi4-int4 --against Phi-4-multimodal-instruct
      phirt eval phi4-int4 --against phi4-fp32 --text book.txt --image photo.jpg --json
    """
    from . import evaluation

    inputs = evaluation.Inputs(text, tokens, image or (), audio or ())
    evaluation.evaluate(bundle, against, inputs, Output(), as_json=json)


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", show_default=False, help="The recipe, a TOML file.")
    ],
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="The data that the recipe names.")],
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
) -> None:
    """Runs the stages of RECIPE that are not done yet, writes a result table, and at the end a checkpoint.

    Ctrl-C keeps the state; the same command goes on where it stopped.

    \b
      phirt train export/recipes/nano.toml --data data
      phirt train export/recipes/nano.toml --data data --scale tiny -o runs/try
    """
    from . import training

    name = recipe.stem if scale is None else f"{recipe.stem}-{scale}"
    folder = run_dir or Path("runs") / name
    if not training.train(recipe, data, folder, Output(), scale=scale, until=until):
        raise typer.Exit(INTERRUPTED)
