"""`phirt transcribe` and `phirt tokens`: what a recording says, and what a prompt costs.

Knows a phirt.Model and the streams. Does not know options.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import PhirtError

from .show import Output, one_line, plain_table

if TYPE_CHECKING:
    import phirt
    from phirt.encoders.phi4mm_image import ImageDetail


def transcribe(model: phirt.Model, files: Sequence[Path], out: Output, *, as_json: bool) -> bool:
    """Writes one line per file (`path: text` for several), or one JSON object. False when a file failed.

    A file that cannot be used costs one line on stderr; the others are still transcribed.
    """
    results: list[dict[str, Any]] = []
    good = True
    for path in files:
        try:
            with out.busy(f"listening to {path.name}"):
                text = model.transcribe(path)
        except PhirtError as error:
            good = False
            out.error(str(error))
            results.append({"path": str(path), "error": str(error)})
            continue
        results.append({"path": str(path), "text": text})
        if not as_json:
            line = one_line(text)
            out.answer(f"{path}: {line}\n" if len(files) > 1 else f"{line}\n")
    if as_json and (good or len(files) > 1):
        out.json({"files": results})
    return good


def tokens(
    model: phirt.Model,
    text: str,
    images: Sequence[Path],
    audio: Sequence[Path],
    out: Output,
    *,
    system: str | None,
    image_detail: ImageDetail,
    as_json: bool,
) -> None:
    """Writes what a first message of this text and these media takes of the context, and its route."""
    with out.busy("counting"):
        count = model.count_tokens(text, images=images, audio=audio, system=system, image_detail=image_detail)
    parts = {
        "total": count.total,
        "text": count.text,
        "images": list(count.images),
        "audio": list(count.audio),
    }
    if as_json:
        out.json({**parts, "route": count.route})
        return
    table = plain_table("part", "#tokens", "what")
    table.add_row("text", str(count.text), "the message and its frame")
    for kind, counts, paths in (("image", count.images, images), ("audio", count.audio, audio)):
        for number, path in zip(counts, paths, strict=True):
            table.add_row(kind, str(number), one_line(str(path)))
    context = model.manifest.geometry.context
    table.add_row("total", str(count.total), f"of {context} in the context; route {count.route}")
    out.table(table)
