"""A variant compiled ahead for a named chip: each graph becomes one node that holds, in a file beside it,
what the provider's compiler has made of it.

Needs the provider's own package, which compiles for chips that are not there. Knows onnxruntime's options for
it. Knows nothing of graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from phirt.bundle.manifest import CPU_TARGET, GraphSpec, Manifest, Variant
from phirt.errors import ConfigError, ProviderError, first_line
from phirt.runtime.device import Device
from phirt_export.targets.profile import TargetProfile

Note = Callable[[str], None]


def compiled_name(target: str, chip: str) -> str:
    """The name of a target's variant for a chip."""
    return f"{target}_{chip}"


def chip_options(target: str, profile: TargetProfile, chip: str) -> Mapping[str, str]:
    """The provider's options for a chip. Raises ConfigError naming those that there are."""
    if chip not in profile.compiles_for:
        known = ", ".join(sorted(profile.compiles_for)) or "none"
        raise ConfigError(f"target {target} cannot be compiled for {chip!r}; accepted: {known}")
    return profile.compiles_for[chip]


def compile_variant(
    manifest: Manifest, target: str, profile: TargetProfile, chip: str, note: Note
) -> Variant:
    """Compiles the graphs of a variant that lies in the manifest's folder, and writes them there.

    Raises:
        ConfigError: the chip is not known.
        ProviderError: the provider's package is missing, or does not take a graph.
    """
    options, variant = chip_options(target, profile, chip), manifest.variants[target]
    device = Device.named([(profile.providers[0], options)])
    graphs = {}
    for name, spec in variant.graphs.items():
        if spec.target == CPU_TARGET:
            graphs[name] = spec
            continue
        note(f"compiling the {name} graph for {chip}")
        file = f"{compiled_name(target, chip)}_{name}.onnx"
        graphs[name] = _compiled(manifest.folder, spec, file, device)
    return dataclasses.replace(variant, graphs=graphs, options=options)


def _compiled(folder: Path, spec: GraphSpec, file: str, device: Device) -> GraphSpec:
    before = set(folder.iterdir())
    settings = device.session_options(spinning=False)
    for key, value in (
        ("context_enable", "1"),
        ("context_embed_mode", "0"),
        ("context_file_path", str(folder / file)),
    ):
        settings.add_session_config_entry(f"ep.{key}", value)
    try:
        device.open(str(folder / spec.file), settings, strict=True)
    except ProviderError:
        raise
    except Exception as error:  # onnxruntime's types derive from Exception alone
        raise ProviderError(
            f"{spec.file} cannot be compiled by {device.provider}: {first_line(error)}"
        ) from error
    made = sorted(path.name for path in set(folder.iterdir()) - before if path.name != file)
    if not (folder / file).is_file() or not made:
        raise ProviderError(f"{device.provider} has compiled {spec.file} to nothing; update its package")
    return dataclasses.replace(spec, file=file, data=tuple(made))
