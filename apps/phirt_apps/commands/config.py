"""`phirt config`: the user's defaults, shown and changed.

Knows the settings, and that what they do not say is said by the options of `phirt chat`.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from phirt_apps import options
from phirt_apps.errors import UsageError
from phirt_apps.output import Output, one_line, plain_table
from phirt_apps.settings import (
    EMBEDDED,
    KEYS,
    change_settings,
    load_settings,
    parsed,
    settings_path,
    variable,
)

SUMMARY = "Show or change your defaults."
SECTION = "This machine"


def _complete(incomplete: str) -> list[str]:
    return [key for key in KEYS if key.startswith(incomplete)]


def command(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", show_default=False, help="One of the keys.", autocompletion=_complete),
    ] = None,
    value: Annotated[
        str | None, typer.Argument(metavar="VALUE", show_default=False, help="What it shall be from now on.")
    ] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Take KEY out of the file.")] = False,
    json: options.Json = False,
) -> None:
    """Shows your defaults and where each comes from; with KEY its value, with VALUE sets it.

    They are kept in one TOML file, which may be edited by hand. An option on the command line goes before an
    environment variable (PHIRT_ and the key in capitals, such as PHIRT_MODEL), that before the file, and the
    file before what is built in. PHIRT_CONFIG names another file.

    \b
      phirt config
      phirt config model phi4
      phirt config temperature 0.7
      phirt config --unset temperature
    """
    out = Output()
    if key is not None and key not in KEYS:
        raise UsageError(f"{one_line(key)!r} is no key; accepted: {', '.join(KEYS)}")
    if key is None and unset:
        raise UsageError(f"--unset needs a KEY: {', '.join(KEYS)}")
    if key is not None and (unset or value is not None):
        _change(key, None if unset else value, out)
        return
    values = effective()
    path = settings_path()
    if json:
        rows = {name: {"value": held, "from": source} for name, (held, source) in values.items()}
        out.json({"path": None if path is None else str(path), "values": rows})
    elif key is not None:
        held, _ = values[key]
        out.answer("" if held is None else f"{held}\n")
    else:
        _show(values, path, out)


def effective() -> dict[str, tuple[Any, str]]:
    """What counts for each key where the command line does not say it, and where that comes from."""
    from .chat import command as chat

    settings = load_settings()
    built_in = {name: parameter.default for name, parameter in inspect.signature(chat).parameters.items()}
    values: dict[str, tuple[Any, str]] = {}
    for key in KEYS:
        if os.environ.get(variable(key)):
            values[key] = parsed(key, os.environ[variable(key)]), variable(key)
        elif getattr(settings, key) is not None:
            values[key] = getattr(settings, key), "the file"
        else:
            values[key] = built_in.get(key, EMBEDDED if key == "model" else None), "built in"
    return values


def _change(key: str, value: str | None, out: Output) -> None:
    if value is not None and key in ("model", "embedder"):
        value = _model(value)

    def change(document: Any) -> None:
        if value is None:
            document.pop(key, None)
        else:
            document[key] = parsed(key, value)

    path = change_settings(change)
    out.notice(f"{key} is {'not set' if value is None else one_line(value)} now, in {path}")
    if os.environ.get(variable(key)):
        out.notice(f"{variable(key)} is set, and goes before it")


def _model(value: str) -> str:
    """A name as it is, a folder in full: the default counts wherever phirt is started."""
    from phirt_apps.models import resolve

    folder = resolve(Path(value))
    return str(folder.absolute()) if folder is not None and folder == Path(value).expanduser() else value


def _show(values: dict[str, tuple[Any, str]], path: Path | None, out: Output) -> None:
    table = plain_table("key", "value", "from")
    for key, (held, source) in values.items():
        table.add_row(key, "–" if held is None else one_line(str(held)), source)
    out.table(table)
    if path is None:
        out.answer("\nfile: none, as this user has no folder for it; PHIRT_CONFIG can name one\n")
    else:
        out.answer(f"\nfile: {path}{'' if path.exists() else ' (not there yet)'}\n")
