"""Which of a bundle's graphs a provider runs.

A bundle has graphs that any provider of onnxruntime can be asked to run, and may have variants for some of
them; see `manifest.Variant`. Knows manifests and the names of providers. Knows nothing of what a machine has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from phirt.bundle.manifest import Manifest
from phirt.errors import BundleError

# Providers that take graphs made for them alone.
_PARTICULAR = {"QNNExecutionProvider": "qnn"}


def as_variant(manifest: Manifest, name: str) -> Manifest:
    """The manifest with the graphs of a variant in the place of its own, and no more positions than they
    have room for.
    """
    variant, geometry = manifest.variants[name], manifest.geometry
    if variant.static is not None:
        geometry = dataclasses.replace(geometry, context=min(geometry.context, variant.static.window))
    return dataclasses.replace(
        manifest,
        geometry=geometry,
        graphs=variant.graphs,
        encoders={**manifest.encoders, **variant.encoders},
        variant=name,
        static=variant.static,
    )


def variant_for(manifest: Manifest, provider: str, options: Mapping[str, str] | None = None) -> str | None:
    """The name of the variant that a provider runs; None for the bundle's own graphs.

    Of several the one made for the options that the provider is given, then one made for no options.

    Raises:
        BundleError: there is neither a variant nor graphs that the provider could run.
    """
    given = dict(options or {})
    fitting = [name for name, of in manifest.variants.items() if provider in of.providers]
    for name in fitting:
        wanted = manifest.variants[name].options
        if wanted and all(given.get(key) == value for key, value in wanted.items()):
            return name
    for name in fitting:
        if not manifest.variants[name].options:
            return name
    if fitting:
        return fitting[0]
    if manifest.graphs and provider not in _PARTICULAR:
        return None
    made_for = ["cpu"] * bool(manifest.graphs) + sorted(manifest.variants)
    target = _PARTICULAR.get(provider, "cpu")
    # Graphs for others are made from those for the CPU.
    start = manifest.folder if manifest.graphs else "CHECKPOINT"
    raise BundleError(
        f"the bundle {manifest.name!r} has no graphs for {provider}, only for: {', '.join(made_for)}; "
        f"name another --provider, or add them with 'phirt export {start} -o FOLDER --target {target}'"
    )


def for_provider(manifest: Manifest, provider: str, options: Mapping[str, str] | None = None) -> Manifest:
    """The manifest with the graphs that a provider runs. Raises BundleError as `variant_for` does."""
    name = variant_for(manifest, provider, options)
    return manifest if name is None else as_variant(manifest, name)
