"""`phirt add`: gives the folder of a model a name.

Knows the names in the user's settings, and manifests. Copies nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from phirt.errors import ConfigError
from phirt_apps.errors import UsageError
from phirt_apps.output import Output, one_line
from phirt_apps.settings import EMBEDDED, NAME, change_settings

SUMMARY = "Give a model's folder a name."
SECTION = "Models"


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", show_default=False, help="A bundle that 'phirt export' wrote.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What -m shall call it. Default: the folder's name."),
    ] = None,
) -> None:
    """Gives the model in FOLDER a name, so that -m NAME finds it from anywhere.

    Nothing is copied: the folder stays where it is, and the name goes with 'phirt remove'.

    \b
      phirt add my-bundle
      phirt add /data/exports/phi4-int4 --name phi4
      phirt chat -m phi4 "Say hello."
    """
    from phirt.bundle.files import load_any

    place = Path(os.path.abspath(folder))  # noqa: PTH100 - a link such as `current` keeps its meaning
    load_any(place)
    wanted = place.name if name is None else name
    if not re.fullmatch(NAME, wanted):
        raise UsageError(
            f"{one_line(wanted)!r} is no name for a model; accepted with --name: letters, digits, dots, "
            "dashes and underscores, a letter or a digit first, at most 64"
        )
    if wanted == EMBEDDED:
        raise UsageError(f"{EMBEDDED} is the embedded model; choose another --name")

    def register(document: Any) -> None:
        models = document.setdefault("models", {})
        if models.get(wanted, str(place)) != str(place):
            raise ConfigError(
                f"{wanted} is the model in {one_line(models[wanted])}; choose another --name, or forget that "
                f"one with 'phirt remove {wanted}'"
            )
        models[wanted] = str(place)

    change_settings(register)
    Output().answer(f"{wanted}\t{place}\n")
