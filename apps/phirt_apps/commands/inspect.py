"""`phirt inspect`: what a bundle is made of.

Knows the manifest and tables. Opens no graph: a damaged or foreign bundle can be looked at safely.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt_apps import options
from phirt_apps.models import bundle_folder
from phirt_apps.output import Output, one_line, plain_table, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phirt.bundle.manifest import Contents, EmbedderManifest, GraphSpec, Manifest

SUMMARY = "Show what a bundle is made of."
SECTION = "Models"


def command(bundle: options.BundleArgument = None, json: options.Json = False) -> None:
    """Shows what MODEL is made of: sizes, graphs, files, quantization, encoders, adapters, limits.

    Without MODEL: the default one.

    \b
      phirt inspect
      phirt inspect phi4-int4 --json
    """
    inspect(bundle_folder(bundle), Output(), as_json=json)


def inspect(folder: Path, out: Output, *, as_json: bool) -> None:
    """Writes what the manifest says: geometry, graphs, files, quantization, encoders, adapters, limits."""
    from phirt.bundle.files import load_any
    from phirt.bundle.manifest import EmbedderManifest

    manifest = load_any(folder)
    if as_json:
        out.json(_as_object(manifest))
        return
    total = sum(entry.size for entry in manifest.files.values())
    heading = plain_table("bundle", one_line(manifest.name))
    heading.add_row("description", one_line(manifest.description))
    heading.add_row("producer", one_line(manifest.producer))
    heading.add_row("size", f"{size(total)} in {len(manifest.files)} files")
    heading.add_row("weights", _pairs(_formats(manifest.quantization)))
    tables: list[Any] = []
    if isinstance(manifest, EmbedderManifest):
        heading.add_row("makes", f"a vector of {manifest.width:,} numbers of each text")
        heading.add_row("reads", f"text, {manifest.context:,} tokens of it")
        heading.add_row("prompts", _pairs(manifest.prompts) if manifest.prompts else "none")
    else:
        heading.add_row("reads", ", ".join(_modalities(manifest)))
        heading.add_row("tools", "taken" if _takes_tools(manifest) else "no place in the chat template")
        if manifest.generation is not None:
            heading.add_row("answers", _pairs(_given(manifest.generation)))
        described = [describe(manifest) for describe in (_geometry, _weights, _encoders, _rules, _limits)]
        tables = [*described, *_chosen(manifest)]
    out.table(heading)
    for table in (*tables, _files(manifest)):
        out.answer("\n")
        out.table(table)
    for name, graph in manifest.graphs.items():
        out.answer("\n")
        out.table(_graph(name, graph))


def _takes_tools(manifest: Manifest) -> bool:
    """Whether the chat template reads tools; not where it cannot be read."""
    from phirt.errors import BundleError
    from phirt.prompt.chat_template import Program

    try:
        return "tools" in Program(manifest.path(manifest.chat_template).read_text("utf-8")).names
    except (BundleError, OSError, ValueError):
        return False


def _given(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}


def _modalities(manifest: Manifest) -> list[str]:
    return ["text", *("images" if one == "image" else one for one in manifest.modalities)]


def _geometry(manifest: Manifest) -> Any:
    table = plain_table("geometry", "#value")
    for field in dataclasses.fields(manifest.geometry):
        if field.name != "rope":
            table.add_row(field.name, f"{getattr(manifest.geometry, field.name):,}")
    rope = manifest.geometry.rope
    if rope is not None:
        shown = f"theta {rope.theta:g}, {rope.rotary_dim} dims, original context {rope.original_context:,}"
        table.add_row("rope", shown)
    return table


def _formats(quantization: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of formats in a line: the rest has tables of its own. Where each matrix has the format
    that suits it, one for all says nothing.
    """
    chosen = quantization.get("matrices")
    apart = {"matrices", "parts", "weights"} | ({"bits", "block_size", "embedding_bits"} if chosen else set())
    return {name: value for name, value in quantization.items() if name not in apart}


def _chosen(manifest: Manifest) -> list[Any]:
    """How many matrices have which format, where each has its own."""
    counts = manifest.quantization.get("matrices")
    if not isinstance(counts, dict):
        return []
    table = plain_table("chosen format", "#matrices")
    for form, count in counts.items():
        table.add_row(one_line(str(form)), one_line(str(count)))
    return [table]


def _weights(manifest: Manifest) -> Any:
    from phirt_apps.size_table import size_table
    from phirt_quant.sizes import bundle_sizes

    return size_table(bundle_sizes(manifest))


def _encoders(manifest: Manifest) -> Any:
    table = plain_table("encoder", "kind", "takes", "#placeholder", "projectors")
    for name, encoder in manifest.encoders.items():
        table.add_row(
            one_line(name),
            one_line(encoder.kind),
            encoder.modality,
            str(encoder.placeholder),
            one_line(", ".join(encoder.projectors)),
        )
    return table


def _rules(manifest: Manifest) -> Any:
    from phirt.bundle.adapters import adapter_id, adapter_name

    table = plain_table("conversation with", "adapter", "#id", "projectors")
    for rule in manifest.rules:
        adapter = adapter_name(rule)
        table.add_row(
            " and ".join(rule.modalities) or "anything else",
            one_line(adapter),
            str(adapter_id(manifest, adapter)),
            one_line(", ".join(f"{one} of {name}" for name, one in rule.projectors.items()) or "–"),
        )
    return table


def _limits(manifest: Manifest) -> Any:
    table = plain_table("limit", "#value")
    limits = manifest.limits
    table.add_row("image", f"{limits.image_pixels:,} pixels")
    table.add_row("audio", f"{limits.audio_seconds:g} s")
    table.add_row("media file", size(limits.media_bytes))
    table.add_row("context", f"{limits.context or manifest.geometry.context:,} tokens")
    return table


def _files(manifest: Contents) -> Any:
    table = plain_table("file", "#size", "sha256")
    for name, entry in manifest.files.items():
        table.add_row(one_line(name), size(entry.size), entry.sha256[:16])
    return table


def _graph(name: str, graph: GraphSpec) -> Any:
    where = ", ".join((graph.file, *graph.data))
    table = plain_table(
        f"graph {one_line(name)}", "dtype", "shape", title=one_line(f"{name}: {where}, for {graph.target}")
    )
    for side, specs in (("in", graph.inputs), ("out", graph.outputs)):
        for spec in _folded(specs):
            table.add_row(
                one_line(f"{side} {spec.name}"),
                one_line(spec.dtype),
                one_line(" × ".join(map(str, spec.shape))),
            )
    return table


def _folded(specs: Any) -> list[Any]:
    """The tensors with those of the layers reduced to layer 0, whose row then stands for all."""
    kept = []
    for spec in specs:
        parts = spec.name.split(".")
        if len(parts) > 2 and parts[1].isdigit():
            if int(parts[1]) > 0:
                continue
            of_layer, of_all = f"{parts[0]}.{parts[1]}.", f"{parts[0]}.*."
            shape = tuple(str(dimension).replace(of_layer, of_all) for dimension in spec.shape)
            spec = dataclasses.replace(spec, name=spec.name.replace(of_layer, of_all), shape=shape)
        kept.append(spec)
    return kept


def _pairs(values: Any) -> str:
    return one_line(", ".join(f"{name} {value}" for name, value in values.items())) or "as stored"


def _as_object(manifest: Manifest | EmbedderManifest) -> dict[str, Any]:
    plain = {
        f.name: _plain(getattr(manifest, f.name)) for f in dataclasses.fields(manifest) if f.name != "folder"
    }
    return {"folder": str(manifest.folder), **plain}


def _plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "items"):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
