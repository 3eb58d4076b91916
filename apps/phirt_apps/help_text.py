"""What `--help` says about arguments and options: in words for people, not in the types of a program.

Knows the library's parameters and their defaults. Does not know any command.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument


def write_parameters(context: Any, params: list[Any], formatter: Any) -> None:
    """Writes the sections of arguments and of options."""
    for heading, rows in (
        ("Arguments", [(_metavar(p), p.help or "") for p in params if isinstance(p, TyperArgument)]),
        ("Options", [(_names(p), _help(context, p)) for p in params if not isinstance(p, TyperArgument)]),
    ):
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _names(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    return names if option.is_flag or option.count else f"{names} {_metavar(option)}"


def _help(context: Any, option: Any) -> str:
    text = option.help or ""
    value = None if option.is_flag else option.get_default(context, call=False)
    if not option.show_default or value is None or callable(value) or value == ():
        return text
    return f"{text} [default: {f'{value:g}' if isinstance(value, float) else value}]"
