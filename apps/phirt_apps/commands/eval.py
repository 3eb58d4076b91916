"""`phirt eval`: how far a bundle's predictions are from its checkpoint's, or from another bundle's.

Knows its options. The comparison is in `evaluation`, which `phirt export` uses too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phirt_apps import options
from phirt_apps.models import bundle_folder
from phirt_apps.output import Output

SUMMARY = "Measure how far a bundle is from its checkpoint or another bundle."
SECTION = "Make a model"


def command(
    against: Annotated[
        Path,
        typer.Option(
            "--against", metavar="FOLDER", help="The checkpoint (needs the export extra), or another model."
        ),
    ],
    bundle: options.BundleArgument = None,
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
    json: options.Json = False,
) -> None:
    """Compares the predictions of MODEL with those of its checkpoint, or of another bundle, on each route.

    Each token of the text is predicted; after an image or a recording the reference's answer is. KL is in
    nats, of the reference's distribution to the bundle's. Bits a weight count codes, scales and padding. A
    checkpoint runs in float32 and needs four bytes of memory a weight; when that is too much, compare with an
    export of --bits 32. What is not given of text, images and recordings is the program's own: sentences,
    rendered pictures, synthesised clips.

    \b
      phirt eval phi4-int4 --against Phi-4-multimodal-instruct
      phirt eval phi4-int4 --against phi4-fp32 --text book.txt --image photo.jpg --json
    """
    from phirt_apps import evaluation

    inputs = evaluation.Inputs(text, tokens, image or (), audio or (), window, stride)
    evaluation.evaluate(bundle_folder(bundle), bundle_folder(against), inputs, Output(), as_json=json)
