"""Targets added to a bundle: the graphs of each, made from the bundle's own, and the manifest that names
them.

Knows bundles, targets and what is shared. How a variant's graphs are made, `static_variant` and its like
know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phirt.bundle.files import load_manifest
from phirt.bundle.lora import DECODER
from phirt.bundle.manifest import CPU_TARGET, MANIFEST_NAME, Manifest, Variant
from phirt.errors import ConfigError
from phirt.generator import Generator
from phirt.runtime.session import SessionConfig
from phirt_export.bundle import LimitOptions, listed_files, store_manifest
from phirt_export.calibration.samples import OWN_TEXT, Sample, read_samples
from phirt_export.staging import require_replaceable, staged_bundle
from phirt_export.targets import read_target
from phirt_export.variants.compiling import compile_variant, compiled_name
from phirt_export.variants.dynamic_variant import DynamicVariant
from phirt_export.variants.sizes import StaticOptions
from phirt_export.variants.static_variant import StaticVariant

Note = Callable[[str], None]
_DEFAULTS = StaticOptions()
# What an export's settings are where nothing is said; of all others that is None.
_BY_THEMSELVES: Mapping[str, object] = {
    "adapter_bits": 8, "encoder_bits": 8, "kv": "float32", "limits": LimitOptions(),
}  # fmt: skip


def add_targets(
    bundle: Path,
    output: Path,
    targets: Sequence[str],
    *,
    options: StaticOptions = _DEFAULTS,
    chips: Sequence[str] = (),
    calibration: Sequence[Path] = (),
    note: Note | None = None,
) -> Path:
    """A bundle with graphs for these targets, made from those that another bundle has for the CPU.

    Args:
        bundle: the folder of a bundle with graphs for the CPU; it stays as it is.
        output: the folder to write.
        targets: names of `phirt_export.targets`; without `cpu` among them the graphs for it are left out.
        options: of graphs of one size.
        chips: those that graphs are compiled for as well, of the targets that are compiled at all.
        calibration: files and folders as `calibration.read_samples` takes them; without any, text of phirt's
            own and pictures and clips made for it.
        note: called with a line about each step.

    Raises:
        ConfigError: a target that is not known, a bundle that it cannot be made from, an output that holds
            something else.
        BundleError: the bundle cannot be read, or the output not be written.
    """
    for target in targets:
        read_target(target)
    require_chips(targets, chips)
    require_replaceable(output)
    manifest = load_manifest(bundle)
    if DECODER not in manifest.graphs:
        raise ConfigError(
            f"the bundle {manifest.name!r} has no graphs for the CPU, from which others are made; export its "
            f"checkpoint with '--target {CPU_TARGET}' and the targets wanted"
        )
    samples = read_samples(list(calibration) or [OWN_TEXT])
    if output.absolute() == bundle.absolute():
        raise ConfigError(f"{output} is the bundle itself; name another folder for the one with more targets")
    with staged_bundle(output, "targets") as staging:
        for path in staging.folder.iterdir():
            path.unlink()  # nothing of an interrupted run is gone on with
        for name in (*manifest.files, MANIFEST_NAME):
            (staging.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, staging.folder / name)
        write_variants(staging.folder, targets, samples, options, chips, note)
    return output


def write_variants(
    folder: Path,
    targets: Sequence[str],
    samples: Sequence[Sample],
    options: StaticOptions = _DEFAULTS,
    chips: Sequence[str] = (),
    note: Note | None = None,
) -> None:
    """Adds variants to the bundle that lies in `folder`, and takes its graphs for the CPU away unless `cpu`
    is among the targets. Raises as `add_targets`.
    """
    note = note or (lambda line: None)
    manifest = load_manifest(folder)
    keeps = CPU_TARGET in targets
    variants = dict(manifest.variants) if keeps else {}
    with contextlib.ExitStack() as opened:
        generator: Generator | None = None
        for target in targets:
            if target == CPU_TARGET:
                continue
            note(f"making the graphs for {target}")
            profile = read_target(target)
            builder: StaticVariant | DynamicVariant
            if profile.static is not None:
                builder = StaticVariant(manifest, target, profile, options, note)
            else:
                builder = DynamicVariant(manifest, target, profile, note)
            if generator is None and profile.activations is not None:
                generator = Generator(manifest, SessionConfig())
                opened.callback(generator.close)
            variants[target] = builder.write(generator, samples, own_files=not keeps)
    for chip in chips:
        for target in _compiled_for(targets, chip):
            built = dataclasses.replace(manifest, variants=variants)
            name = compiled_name(target, chip)
            variants[name] = compile_variant(built, target, read_target(target), chip, note)
    _store(folder, manifest, variants, keeps)


def refuse_settings(settings: Mapping[str, object]) -> None:
    """Raises ConfigError where one of these settings of an export is not what it is by itself: a finished
    bundle cannot be given it.
    """
    refused = [name for name, value in settings.items() if value not in (None, _BY_THEMSELVES.get(name))]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} cannot be set for a bundle, whose weights are quantized already; leave it "
            "out, or export the bundle's checkpoint"
        )


def require_chips(targets: Sequence[str], chips: Sequence[str]) -> None:
    """Raises ConfigError where none of the targets is compiled for one of the chips."""
    for chip in chips:
        if not _compiled_for(targets, chip):
            known = sorted({one for target in targets for one in read_target(target).compiles_for})
            raise ConfigError(
                f"nothing of the targets {', '.join(targets)} is compiled for {chip!r}; accepted: "
                f"{', '.join(known) or 'none'}"
            )


def _compiled_for(targets: Sequence[str], chip: str) -> list[str]:
    return [target for target in targets if chip in read_target(target).compiles_for]


def _store(folder: Path, manifest: Manifest, variants: Mapping[str, Variant], keeps: bool) -> None:
    """The manifest with these variants, and no file that nothing uses."""
    graphs = manifest.graphs if keeps else {}
    listed = dataclasses.replace(manifest, graphs=graphs, variants=variants)
    for name in _graph_files(manifest) - _graph_files(listed):
        (folder / name).unlink()
    files = listed_files(folder, {})
    store_manifest(dataclasses.replace(listed, files=files, folder=folder))


def _graph_files(manifest: Manifest) -> set[str]:
    """The files of all graphs, those of variants among them."""
    sets = [manifest.graphs, *(variant.graphs for variant in manifest.variants.values())]
    return {name for graphs in sets for graph in graphs.values() for name in (graph.file, *graph.data)}
