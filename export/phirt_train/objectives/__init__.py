"""What stages minimise: each module of this folder is one objective, by the name a recipe gives.

Knows where objectives lie, and none of them: a new one is a new module with a constant `KIND` (see
`phirt_train.objective`).
"""

from __future__ import annotations

import importlib
import pkgutil

from phirt.errors import ConfigError
from phirt_train.objective import ObjectiveKind


def known_objectives() -> tuple[str, ...]:
    """The names that a recipe may give."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_objective(name: str) -> ObjectiveKind:
    """The objective of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in known_objectives():
        raise ConfigError(f"objective is {name!r:.80}; accepted: {', '.join(known_objectives())}")
    kind = importlib.import_module(f"{__name__}.{name}").KIND
    assert isinstance(kind, ObjectiveKind), f"{__name__}.{name} has no KIND"
    return kind
