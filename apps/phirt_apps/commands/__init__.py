"""The commands of `phirt`: each is one file in this folder, and a new file is a new command.

A command's module has its name (`verify.py` answers `phirt verify`) and these three, which `Command` names:

    SUMMARY = "One line for the list of all commands."
    SECTION = "Models"      # a heading of that list, one of SECTIONS

    def command(bundle: options.BundleArgument = None) -> None:
        '''What `phirt verify --help` says.'''

A module of two words is the command of the second word below the first: `train_finetune.py` answers `phirt
train finetune`. Where the first takes a path, a path of that name is `./finetune`.

All of them are imported at each start, so what is heavy (the runtime, torch) is imported inside `command`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

SECTIONS = ("Use a model", "Models", "Make a model", "This machine")


class Command(Protocol):
    """What a module of this folder offers."""

    SUMMARY: str
    SECTION: str
    command: Callable[..., Any]


def all_commands() -> Iterator[tuple[str, Command]]:
    """Names and modules, section by section and sorted by name."""
    modules = {name: module for name, module in _modules() if "_" not in name}
    for section in SECTIONS:
        for name, module in modules.items():
            if section == module.SECTION:
                yield name, module


def subcommands() -> Iterator[tuple[str, Command]]:
    """Names of two words, and modules."""
    return ((name.replace("_", " "), module) for name, module in _modules() if "_" in name)


def _modules() -> Iterator[tuple[str, Command]]:
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        yield name, cast(Command, importlib.import_module(f"{__name__}.{name}"))
