"""Which LoRA route a conversation takes, and which projector its audio needs.

Knows the routing rule and the manifest's routes. Knows nothing of weights, media contents or caches.
"""

from __future__ import annotations

from phirt.bundle.manifest import Manifest
from phirt.errors import BundleError

PROJECTOR_IDS = {"speech": 0, "vision": 1}


def choose_route(manifest: Manifest, *, images: int, audio: int) -> str:
    """ "vision" with any image in the conversation, "speech" with audio alone, else "none".

    Raises BundleError where the bundle lacks the encoder or the route.
    """
    for count, graph, what in ((images, "vision", "images"), (audio, "speech", "audio")):
        if count and graph not in manifest.graphs:
            raise BundleError(
                f"the bundle {manifest.name!r} takes no {what}: it has the graphs "
                f"{', '.join(manifest.graphs)}; "
                f"use a bundle exported with a {graph} encoder"
            )
    route = "vision" if images else "speech" if audio else "none"
    if route not in manifest.routes:
        raise BundleError(
            f"the bundle {manifest.name!r} has no route {route!r}, only {', '.join(manifest.routes)}; export "
            "it again"
        )
    return route


def audio_projector(manifest: Manifest, route: str) -> str:
    """The projector that audio takes under `route`. Raises BundleError if it names none."""
    name = manifest.routes[route].audio_projector
    if name not in PROJECTOR_IDS:
        raise BundleError(
            f"the bundle {manifest.name!r} names the audio projector {name!r} for the route {route!r}, "
            f"accepted: {', '.join(PROJECTOR_IDS)}; export it again"
        )
    return name
