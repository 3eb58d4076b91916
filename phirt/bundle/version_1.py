"""Manifests of version 1 as documents of version 2.

Knows the first version's keys: one image and one audio encoder of Phi-4-multimodal's kinds with the graphs
`vision` and `speech`, and `routes`, which named adapter and projector in one. Knows nothing of what reads the
result; that checks all values, so that here only the shape of what is taken apart is checked.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from phirt.fields import Fields, Range, read_dataclass

_PROJECTORS = ("speech", "vision")  # of the audio encoder, in the order of its graph's input
# Route, the encoder's graph, and its modality, under which `tokens` had the placeholder and the root the
# constants. The first route that fits was taken.
_ROUTES = (("vision", "vision", "image"), ("speech", "speech", "audio"))


@dataclasses.dataclass(frozen=True)
class _Route:
    """What `routes` said: the decoder's input, the adapter, and the projector that audio took beside it."""

    id: Annotated[int, Range(0, 255)]
    adapter: str | None
    audio_projector: str | None


def upgrade(root: Fields) -> dict[str, Any]:
    """The document of version 2 that says the same. Raises the document's error where it cannot be taken
    apart.
    """
    routes = {name: read_dataclass(_Route, fields) for name, fields in root.mapping("routes").items()}
    graphs, tokens = root.child("graphs"), root.child("tokens")
    if "none" not in routes:
        raise root.refusal("'routes' has no 'none'")
    if len({route.id for route in routes.values()}) != len(routes):
        raise root.refusal(f"'routes' share an id: {sorted(route.id for route in routes.values())}")
    encoders: dict[str, Any] = {}
    adapters: dict[str, Any] = {}
    rules: list[dict[str, Any]] = []
    for name, graph, modality in _ROUTES:
        if root.has(modality) != (graph in graphs):
            raise root.refusal(f"{modality!r} and the graph {graph!r} must come together")
        if not root.has(modality):
            continue
        if not tokens.has(modality):
            raise root.refusal(
                f"'tokens' has no {modality!r} placeholder though the bundle has a {graph} graph"
            )
        if name not in routes:
            raise root.refusal(f"'routes' has no {name!r} though the bundle has a {graph} graph")
        encoders[graph] = _encoder(root, graph, modality)
        route = routes[name]
        if route.adapter in adapters:
            raise root.refusal(f"'routes' share the adapter {route.adapter!r}")
        if route.adapter is not None:
            adapters[route.adapter] = {"id": route.id}
        rules.append({"modalities": [modality], **_choice(root, route)})
    rules.append({"modalities": [], **_choice(root, routes["none"])})
    replaced: dict[str, Any] = {
        "tokens": {key: tokens.raw(key) for key in ("bos", "pad", "eos") if key in tokens},
        "encoders": encoders,
        "adapters": adapters,
        "rules": rules,
        "quantization": {} if root.raw("quantization") is None else root.raw("quantization"),
    }
    old = ("image", "audio", "routes")
    return {key: value for key, value in root.items() if key not in old} | replaced


def _encoder(root: Fields, graph: str, modality: str) -> dict[str, Any]:
    return {
        "kind": f"phi4mm_{modality}",
        "modality": modality,
        "graph": graph,
        "placeholder": root.child("tokens").raw(modality),
        "projectors": ["image"] if modality == "image" else list(_PROJECTORS),
        "constants": root.raw(modality),
    }


def _choice(root: Fields, route: _Route) -> dict[str, Any]:
    heard = root.has("audio") and route.audio_projector is not None
    return {"adapter": route.adapter, "projectors": {"speech": route.audio_projector} if heard else {}}
