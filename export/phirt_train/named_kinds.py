"""Kinds of things that are found by the name that a recipe gives: each is one module of a package, with a
constant `KIND`.

Knows packages and names. Knows none of the kinds.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import TypeVar

from phirt.errors import ConfigError

T = TypeVar("T")


def find_kind(package: str, folders: Iterable[str], field: str, name: str, cls: type[T]) -> T:
    """The `KIND` of the module of this name.

    Args:
        package: the package's name.
        folders: its `__path__`.
        field: what a recipe calls the name.
        name: what the recipe gives.
        cls: what the constant is.

    Raises:
        ConfigError: there is no such module.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(list(folders)))
    if name not in known:
        raise ConfigError(f"{field} is {name!r:.80}; accepted: {', '.join(known)}")
    kind = importlib.import_module(f"{package}.{name}").KIND
    assert isinstance(kind, cls), f"{package}.{name} has no KIND"
    return kind
