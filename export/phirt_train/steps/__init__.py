"""What recipes do between stages: each module of this folder is one kind of step, by the name a recipe gives.

Knows where kinds lie, and none of them: a new one is a new module with a constant `KIND` (see
`phirt_train.step`).
"""

from __future__ import annotations

from phirt_train.named_kinds import find_kind
from phirt_train.step import StepKind


def find_step(name: str) -> StepKind:
    """The kind of this name.

    Raises:
        ConfigError: there is none.
    """
    return find_kind(__name__, __path__, "kind", name, StepKind)
