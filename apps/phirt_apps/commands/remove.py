"""`phirt remove`: forgets the name of a model.

Knows the names in the user's settings. Never touches a model's files.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from phirt.errors import ConfigError
from phirt_apps import options
from phirt_apps.errors import UsageError
from phirt_apps.output import Output, one_line
from phirt_apps.settings import EMBEDDED, change_settings

SUMMARY = "Forget a model's name; its files stay."
SECTION = "Models"


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", show_default=False, help="As 'phirt list' shows it.", autocompletion=options.names
        ),
    ],
) -> None:
    """Forgets NAME. The model's folder stays as it is.

    \b
      phirt remove phi4
    """
    if name == EMBEDDED:
        raise UsageError(f"{EMBEDDED} is the embedded model, a part of phirt")
    was_default = False
    folder = ""

    def forget(document: Any) -> None:
        nonlocal was_default, folder
        models = document.get("models", {})
        if name not in models:
            known = ", ".join(map(one_line, models)) or "none"
            raise ConfigError(f"no model is called {one_line(name)}; those that can be forgotten: {known}")
        folder = models.pop(name)
        was_default = document.get("model") == name
        if was_default:
            del document["model"]

    change_settings(forget)
    out = Output()
    out.notice(f"forgot {name}; its files stay in {one_line(folder)}")
    if was_default:
        out.notice("it was the default model; now the embedded one is")
