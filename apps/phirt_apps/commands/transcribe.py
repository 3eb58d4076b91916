"""`phirt transcribe`: what recordings say.

Knows its options, a phirt.Model and the streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phirt.errors import PhirtError
from phirt_apps import options
from phirt_apps.errors import FAILED
from phirt_apps.output import Output, one_line

if TYPE_CHECKING:
    import phirt

SUMMARY = "Write what recordings say."
SECTION = "Use a model"


def command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", show_default=False, help="Recordings, and videos for their sound."),
    ],
    bundle: options.Bundle = None,
    json: options.Json = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Writes what is said in each FILE, one line per file (`path: text` when there are several).

    A file that cannot be used costs one line on stderr, the others are still transcribed, and the exit status
    is 1.

    \b
      phirt transcribe memo.flac
      phirt transcribe --json *.wav
    """
    from phirt_apps.models import load

    out = Output()
    if not transcribe(load(bundle, out, provider, threads), files, out, as_json=json):
        raise typer.Exit(FAILED)


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
