"""`phirt inspect` and `phirt verify`: what a bundle is made of, and whether its files are whole.

Knows the manifest and tables. Opens no graph: a damaged or foreign bundle can be looked at safely.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from phirt.bundle.files import load_manifest, verify_bundle
from phirt.bundle.manifest import GraphSpec, Manifest
from phirt.errors import BundleError

from .show import Output, one_line, plain_table, size

# Up to this size every file is hashed before a bundle is used: about a fifth of a second. Larger ones: `phirt
# verify`.
HASHED_BEFORE_USE = 256_000_000


def small_enough_to_hash(folder: Path | None) -> bool:
    """Whether checking every byte before use costs next to nothing. The embedded bundle (None) always is."""
    if folder is None:
        return True
    return sum(entry.size for entry in load_manifest(folder).files.values()) <= HASHED_BEFORE_USE


def inspect(folder: Path, out: Output, *, as_json: bool) -> None:
    """Writes what the manifest says: geometry, graphs, files, quantization, routes, limits."""
    manifest = load_manifest(folder)
    if as_json:
        out.json(_as_object(manifest))
        return
    total = sum(entry.size for entry in manifest.files.values())
    heading = plain_table("bundle", one_line(manifest.name))
    heading.add_row("description", one_line(manifest.description))
    heading.add_row("producer", one_line(manifest.producer))
    heading.add_row("size", f"{size(total)} in {len(manifest.files)} files")
    heading.add_row("weights", _pairs(manifest.quantization))
    heading.add_row("reads", ", ".join(_modalities(manifest)))
    out.table(heading)
    for table in (_geometry(manifest), _routes(manifest), _limits(manifest), _files(manifest)):
        out.answer("\n")
        out.table(table)
    for name, graph in manifest.graphs.items():
        out.answer("\n")
        out.table(_graph(name, graph))


def verify(folder: Path, out: Output, *, as_json: bool) -> None:
    """Hashes every file and writes ok or bad for each. Raises BundleError when one is bad."""
    with out.busy(f"hashing {folder.name}"):
        report = verify_bundle(folder)
    bad = [name for name, detail in report if detail != "ok"]
    if as_json:
        out.json({"ok": not bad, "files": dict(report)})
    else:
        table = plain_table("file", "state", "detail")
        for name, detail in report:
            good = detail == "ok"
            table.add_row(one_line(name), "ok" if good else "bad", "" if good else one_line(detail))
        out.table(table)
    if bad:
        raise BundleError(
            f"{len(bad)} of {len(report)} files are bad: {', '.join(bad)}; fetch or export them again"
        )


def _modalities(manifest: Manifest) -> list[str]:
    return ["text", *(["images"] if manifest.image else []), *(["audio"] if manifest.audio else [])]


def _geometry(manifest: Manifest) -> Any:
    table = plain_table("geometry", "#value")
    for field in dataclasses.fields(manifest.geometry):
        if field.name != "rope":
            table.add_row(field.name, f"{getattr(manifest.geometry, field.name):,}")
    rope = manifest.geometry.rope
    table.add_row(
        "rope", f"theta {rope.theta:g}, {rope.rotary_dim} dims, original context {rope.original_context:,}"
    )
    return table


def _routes(manifest: Manifest) -> Any:
    table = plain_table("route", "#id", "adapter", "audio projector")
    for name, route in manifest.routes.items():
        table.add_row(
            one_line(name),
            str(route.id),
            one_line(route.adapter or "–"),
            one_line(route.audio_projector or "–"),
        )
    return table


def _limits(manifest: Manifest) -> Any:
    table = plain_table("limit", "#value")
    limits = manifest.limits
    table.add_row("image", f"{limits.image_pixels:,} pixels")
    table.add_row("audio", f"{limits.audio_seconds:g} s")
    table.add_row("media file", size(limits.media_bytes))
    table.add_row("context", f"{manifest.geometry.context:,} tokens")
    return table


def _files(manifest: Manifest) -> Any:
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
    """The tensors with the layers' keys and values reduced to layer 0, whose row then stands for all."""
    kept = []
    for spec in specs:
        parts = spec.name.split(".")
        if len(parts) == 3 and parts[1].isdigit():
            if int(parts[1]) > 0:
                continue
            spec = dataclasses.replace(spec, name=f"{parts[0]}.*.{parts[2]}")
        kept.append(spec)
    return kept


def _pairs(values: Any) -> str:
    return one_line(", ".join(f"{name} {value}" for name, value in values.items())) or "as stored"


def _as_object(manifest: Manifest) -> dict[str, Any]:
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
