"""Kinds of devices that packages are made for: one module a kind, named after it, with its PROFILE."""

from __future__ import annotations

import importlib
import pkgutil

from phirt.errors import ConfigError
from phirt_export.mobile.profile import MobileProfile


def known_profiles() -> tuple[str, ...]:
    """The names that `--target` takes for packages."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def read_profile(name: str) -> MobileProfile:
    """The profile of a kind of device. Raises ConfigError naming those that there are."""
    if name not in known_profiles():
        raise ConfigError(f"no package can be made for {name!r}; choose from {', '.join(known_profiles())}")
    profile: MobileProfile = importlib.import_module(f"{__name__}.{name}").PROFILE
    return profile
