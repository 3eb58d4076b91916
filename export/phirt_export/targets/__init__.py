"""Targets: one module a target, named after it, with its PROFILE.

Knows where profiles lie, and none of them: a new one is a new module here, and a file in `passes` for each
new rewrite.
"""

from __future__ import annotations

import importlib
import pkgutil

from phirt.errors import ConfigError
from phirt_export.targets.profile import TargetProfile

_NO_TARGET = "profile"


def known_targets() -> tuple[str, ...]:
    """The names that `--target` takes."""
    modules = pkgutil.iter_modules(__path__)
    return tuple(sorted(one.name for one in modules if one.name != _NO_TARGET and not one.ispkg))


def read_target(name: str) -> TargetProfile:
    """The profile of a target. Raises ConfigError naming those that there are."""
    if name not in known_targets():
        raise ConfigError(f"target {name!r} cannot be built; choose from {', '.join(known_targets())}")
    profile: TargetProfile = importlib.import_module(f"{__name__}.{name}").PROFILE
    return profile
