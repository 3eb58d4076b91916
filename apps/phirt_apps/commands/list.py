"""`phirt list`: the models that have names.

Knows the names in the user's settings, and manifests. Opens no graph: a damaged bundle is listed too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from phirt.errors import PhirtError
from phirt_apps import options
from phirt_apps.models import named_models
from phirt_apps.output import Output, one_line, plain_table, size
from phirt_apps.settings import EMBEDDED, load_settings, variable

SUMMARY = "List the models that have names."
SECTION = "Models"


def command(json: options.Json = False) -> None:
    """Lists the models that have names, with their folders; -m takes them.

    The default model, marked with a star, is what PHIRT_MODEL or 'phirt config model' says, or else the
    embedded one.

    \b
      phirt list
    """
    out = Output()
    settings = load_settings()
    default = os.environ.get(variable("model")) or settings.model or EMBEDDED
    rows = [_row(name, folder, default) for name, folder in named_models()]
    if json:
        out.json({"models": rows})
        return
    table = plain_table("", "name", "#size", "folder")
    for row in rows:
        state = size(row["bytes"]) if row["error"] is None else "unusable"
        table.add_row("*" if row["default"] else "", one_line(row["name"]), state, one_line(row["folder"]))
    out.table(table)
    for row in rows:
        if row["error"] is not None:
            out.notice(f"{row['name']}: {one_line(row['error'])}")


def _row(name: str, folder: Path, default: str) -> dict[str, Any]:
    from phirt.bundle.files import load_any

    row = {"name": name, "folder": str(folder), "default": default in (name, str(folder)), "error": None}
    try:
        files = load_any(folder).files.values()
        return {**row, "bytes": sum(entry.size for entry in files)}
    except PhirtError as error:
        return {**row, "bytes": None, "error": str(error)}
