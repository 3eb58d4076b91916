"""`phirt tokens`: what a prompt costs, part by part, without answering it.

Knows its options, a phirt.Model and the streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from phirt_apps import options
from phirt_apps.answer import media_name
from phirt_apps.errors import UsageError
from phirt_apps.output import Output, plain_table

if TYPE_CHECKING:
    import phirt
    from phirt.encoders.encoder import ImageDetail
    from phirt_apps.arguments import Inputs

SUMMARY = "Count what a prompt takes of the context."
SECTION = "Use a model"


def command(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", show_default=False, help="The text of the message.")
    ] = None,
    bundle: options.Bundle = None,
    image: options.Images = None,
    audio: options.Audio = None,
    image_detail: options.ImageDetail = "auto",
    system: options.System = None,
    json: options.Json = False,
) -> None:
    """Counts what a prompt takes of the context, part by part, and names its route. Answers nothing.

    What is piped into stdin is the text, or follows TEXT behind an empty line; `-` stands for stdin as TEXT
    or FILE.

    \b
      phirt tokens "How long is this?"
      phirt tokens --image photo.jpg --json "What is this?"
    """
    from phirt_apps.arguments import gather
    from phirt_apps.models import load

    out = Output()
    inputs = gather(text, image, audio, out)
    if inputs.text is None and not (inputs.images or inputs.audio):
        raise UsageError("nothing to count; give TEXT, pipe text into stdin, or attach --image or --audio")
    count_tokens(load(bundle, out), inputs, out, system=system, image_detail=image_detail, as_json=json)


def count_tokens(
    model: phirt.Model,
    inputs: Inputs,
    out: Output,
    *,
    system: str | None,
    image_detail: ImageDetail,
    as_json: bool,
) -> None:
    """Writes what a first message of this text and these media takes of the context, and its route."""
    with out.busy("counting"):
        count = model.count_tokens(
            inputs.text or "",
            images=inputs.images,
            audio=inputs.audio,
            system=system,
            image_detail=image_detail,
        )
    parts = {
        "total": count.total,
        "text": count.text,
        "images": list(count.images),
        "audio": list(count.audio),
    }
    if as_json:
        out.json({**parts, "route": count.adapter})
        return
    table = plain_table("part", "#tokens", "what")
    table.add_row("text", str(count.text), "the message and its frame")
    for kind, counts, paths in (("image", count.images, inputs.images), ("audio", count.audio, inputs.audio)):
        for number, path in zip(counts, paths, strict=True):
            table.add_row(kind, str(number), media_name(path))
    context = model.manifest.geometry.context
    table.add_row("total", str(count.total), f"of {context} in the context; route {count.adapter}")
    out.table(table)
