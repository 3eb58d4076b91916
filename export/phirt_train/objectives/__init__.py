"""What stages minimise: each module of this folder is one objective, by the name a recipe gives.

Knows where objectives lie, and none of them: a new one is a new module with a constant `KIND` (see
`phirt_train.objective`).
"""

from __future__ import annotations

from phirt_train.named_kinds import find_kind
from phirt_train.objective import ObjectiveKind


def find_objective(name: str) -> ObjectiveKind:
    """The objective of this name.

    Raises:
        ConfigError: there is none.
    """
    return find_kind(__name__, __path__, "objective", name, ObjectiveKind)
