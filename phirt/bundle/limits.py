"""What a request may cost, as whoever loads a bundle sets it.

Knows the manifest's limits. Knows nothing of media or prompts; those who read them compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from phirt.bundle.manifest import Limits, Manifest
from phirt.errors import ConfigError
from phirt.fields import Fields, read_dataclass, write_dataclass

_REMEDY = "give a dict like {'image_pixels': 50_000_000, 'audio_seconds': 600}"


def with_limits(manifest: Manifest, changes: Mapping[str, float] | None) -> Manifest:
    """The manifest with some of its limits replaced, lower or higher; a context that is limited counts as the
    decoder's own from then on.

    Raises ConfigError for a limit that is none, and for a context longer than the decoder's.
    """
    if changes is not None and not isinstance(changes, Mapping):
        raise ConfigError(f"limits is a {type(changes).__name__}, accepted: a dict; {_REMEDY}")
    known = Fields(dict(changes or {}), "limits", ConfigError, _REMEDY, closed=True)
    known.require_known([field.name for field in dataclasses.fields(Limits)])
    merged = Fields(write_dataclass(manifest.limits) | dict(changes or {}), "limits", ConfigError, _REMEDY)
    limits = read_dataclass(Limits, merged)
    geometry = manifest.geometry
    if limits.context is not None and limits.context > geometry.context:
        raise merged.refusal(
            f"context {limits.context} is more than the decoder's {geometry.context} positions"
        )
    if limits.context is not None:
        geometry = dataclasses.replace(geometry, context=limits.context)
    return dataclasses.replace(manifest, limits=limits, geometry=geometry)
