"""What recipes do between stages: each module of this folder is one kind of step, by the name a recipe gives.

Knows where kinds lie, and none of them: a new one is a new module with a constant `KIND` (see
`phirt_train.step`).
"""

from __future__ import annotations

import importlib
import pkgutil

from phirt.errors import ConfigError
from phirt_train.step import StepKind


def known_steps() -> tuple[str, ...]:
    """The names that a recipe may give."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_step(name: str) -> StepKind:
    """The kind of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in known_steps():
        raise ConfigError(f"kind is {name!r:.80}; accepted: {', '.join(known_steps())}")
    kind = importlib.import_module(f"{__name__}.{name}").KIND
    assert isinstance(kind, StepKind), f"{__name__}.{name} has no KIND"
    return kind
