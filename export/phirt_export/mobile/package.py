"""A bundle as a package for a phone: the same files, and beside them what a host without Python needs.

    host.json                  the chat template as fixed pieces, the memory plan
    golden.json, golden-*      conversations with the ids that a host has to answer
    required_operators.config  for a build of onnxruntime with these operators alone
    PACKAGE.md                 what this is, and what it takes

Knows which files there are. A package is still a bundle: phirt itself loads it. Graphs for other providers,
and the one for a user's own adapters, stay behind; those for a page are written anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import phirt
from phirt.bundle.files import load_manifest, require_intact
from phirt.bundle.lora import DECODER, LORA_DECODER
from phirt.bundle.manifest import CPU_TARGET, FileEntry, GraphSpec, Manifest
from phirt.errors import ConfigError
from phirt.generate.kv_cache import cache_dtype
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS
from phirt_export.bundle import is_document, listed_files, store_manifest
from phirt_export.mobile.golden import golden_vectors
from phirt_export.mobile.host_tokenizer import require_host_tokenizer
from phirt_export.mobile.memory import MemoryPlan, plan_memory
from phirt_export.mobile.operators import config_text, required_operators
from phirt_export.mobile.page_graphs import PageGraphs, write_page_graphs
from phirt_export.mobile.profile import MobileProfile
from phirt_export.mobile.rendering import as_document, fixed_rendering
from phirt_export.staging import staged_bundle

HOST, GOLDEN, OPERATORS, README = "host.json", "golden.json", "required_operators.config", "PACKAGE.md"
_KINDS = ("phi4mm_image", "fixed_image", "phi4mm_audio", "whisper_audio")

Say = Callable[[str], None]


def write_package(
    bundle: Path, output: Path, profile: MobileProfile, device: int | None, say: Say
) -> MemoryPlan:
    """Writes the bundle in `bundle` as a package; `say` is told each step. Returns its memory plan.

    Raises:
        ConfigError: the bundle is none that a host can run, or does not fit the device.
        BundleError: the bundle is damaged, or the output cannot be written.
    """
    manifest = load_manifest(bundle)
    plan = plan_for(manifest, device, profile)
    document = _host_document(manifest, profile, plan)
    kept = _kept_files(manifest)
    say("checking the bundle's files")
    require_intact(bundle, kept)
    identity = hashlib.sha256(f"{manifest.fingerprint} {profile.name} {device}".encode()).hexdigest()
    with staged_bundle(output, identity) as staging:
        folder = staging.folder
        graphs, known = _write_files(manifest, folder, kept, profile)
        say("looking for the operators of its graphs")
        operators = required_operators(folder / graph.file for graph in graphs.values())
        (folder / OPERATORS).write_text(config_text(operators), "utf-8")
        say("answering the golden conversations")
        with phirt.load(bundle) as model:
            golden = golden_vectors(model, folder)
        _write_json(folder / GOLDEN, golden)
        _write_json(folder / HOST, document)
        (folder / README).write_text(_readme(manifest, profile, plan, golden), "utf-8")
        _write_manifest(manifest, folder, graphs, known, plan)
    return plan


def plan_for(manifest: Manifest, device: int | None, profile: MobileProfile) -> MemoryPlan:
    """The memory plan of a bundle. Raises ConfigError where it does not fit, or cannot be run by a host at
    all.
    """
    if DECODER not in manifest.graphs or manifest.graphs[DECODER].target != CPU_TARGET:
        raise ConfigError(
            f"the bundle {manifest.name!r} has no graphs for a CPU, which packages are made of; "
            "export it for cpu"
        )
    if strange := [spec.kind for spec in manifest.encoders.values() if spec.kind not in _KINDS]:
        raise ConfigError(
            f"a host knows no encoders of the kind {strange[0]!r}, accepted: {', '.join(_KINDS)}"
        )
    sizes = {
        part: sum(manifest.files[name].size for name in (graph.file, *graph.data))
        for part, graph in _kept_graphs(manifest).items()
    }
    decoder = sizes.pop(DECODER)
    itemsize = 1 if cache_dtype(manifest.graphs[DECODER].inputs) == "int8" else 4
    geometry = manifest.geometry
    if manifest.limits.context is not None:
        geometry = dataclasses.replace(geometry, context=manifest.limits.context)
    share, limit = profile.memory_share, profile.memory_limit
    return plan_memory(geometry, itemsize, decoder, sum(sizes.values()), device, share, limit)


def _host_document(manifest: Manifest, profile: MobileProfile, plan: MemoryPlan) -> dict[str, Any]:
    """What host.json says. Raises ConfigError where the bundle has what no host takes."""
    require_host_tokenizer(manifest.path(manifest.tokenizer))
    tokenizer = Tokenizer(manifest.path(manifest.tokenizer), manifest.geometry.vocab_size, VISIBLE_TOKENS)
    template = ChatTemplate(
        manifest.path(manifest.chat_template).read_text("utf-8"),
        tokenizer,
        manifest.tokens,
        {name: spec.placeholder for name, spec in manifest.encoders.items()},
        manifest.template_names,
    )
    encoders = {name: (spec.modality, spec.placeholder) for name, spec in manifest.encoders.items()}
    return {
        "format": "phirt-host",
        "version": 1,
        "target": profile.name,
        "rendering": as_document(fixed_rendering(template, encoders)),
        "memory": dataclasses.asdict(plan) | {"total": plan.total},
    }


def _kept_graphs(manifest: Manifest) -> dict[str, GraphSpec]:
    return {name: graph for name, graph in manifest.graphs.items() if name != LORA_DECODER}


def _kept_files(manifest: Manifest) -> list[str]:
    graphs = _kept_graphs(manifest).values()
    names = [manifest.tokenizer, manifest.chat_template, *(graph.file for graph in graphs)]
    names += [name for graph in graphs for name in graph.data]
    names += filter(is_document, manifest.files)
    if nested := [name for name in names if "/" in name]:
        raise ConfigError(f"the bundle's file {nested[0]!r} lies in a folder of its own; export it again")
    return list(dict.fromkeys(names))


def _write_files(
    manifest: Manifest, folder: Path, kept: Sequence[str], profile: MobileProfile
) -> tuple[Mapping[str, GraphSpec], Mapping[str, FileEntry]]:
    """Writes what a bundle has; returns the graphs, and the files of which size and digest are known."""
    graphs = _kept_graphs(manifest)
    written = PageGraphs(graphs, {})
    anew: set[str] = set()
    if profile.max_file_bytes is not None:
        written = write_page_graphs(graphs, manifest.folder, folder, profile.max_file_bytes)
        anew = {name for graph in graphs.values() for name in (graph.file, *graph.data)}
    for name in kept:
        if name not in anew:
            shutil.copyfile(manifest.path(name), folder / name)
    # Not what else the manifest lists: where the bundle is a package itself, that is made anew.
    copied = {name: manifest.files[name] for name in kept if name not in anew}
    return written.graphs, {**copied, **written.files}


def _write_manifest(
    manifest: Manifest,
    folder: Path,
    graphs: Mapping[str, GraphSpec],
    known: Mapping[str, FileEntry],
    plan: MemoryPlan,
) -> None:
    files = listed_files(folder, {name: entry.sha256 for name, entry in known.items()})
    limits = manifest.limits
    if plan.context < manifest.geometry.context:
        limits = dataclasses.replace(limits, context=plan.context)
    store_manifest(
        dataclasses.replace(
            manifest, files=files, graphs=dict(graphs), variants={}, limits=limits, folder=folder
        )
    )


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _readme(manifest: Manifest, profile: MobileProfile, plan: MemoryPlan, golden: dict[str, Any]) -> str:
    def mega(size: int) -> str:
        return f"{size / (1 << 20):.0f} MB"

    accepted = ", ".join(["text", *manifest.modalities])
    cases = "; ".join(case["name"] for case in golden["cases"])
    device = (
        "any device" if plan.device is None else f"a device with {plan.device / (1 << 30):g} GB of memory"
    )
    paragraphs = [
        f"A package of phirt: a model that takes {accepted}, for {device}. It runs on {profile.library}, "
        f"driven by {profile.driver}.",
        f"- {profile.guide}",
        f"- The longest conversation has {plan.context} tokens and takes about {mega(plan.total)}: "
        f"{mega(plan.weights)} for the decoder, {mega(plan.encoders)} for its encoders once they are in "
        "use (which releasing them gives back), "
        f"{plan.per_token / 1024:.0f} kB for each token.",
        f"- `golden.json` holds conversations ({cases}) and the ids that this model answers. Run them once "
        "on each kind of device that you ship to: the hosts' tests do it.",
        "- `required_operators.config` lists what these graphs need, for a smaller build of onnxruntime: "
        "`build.py --include_ops_by_config required_operators.config`.",
        "- `phirt verify` compares every file with the manifest, and `phirt chat -m` answers with the "
        "package as with any bundle.",
    ]
    wrapped = [
        textwrap.fill(text, 100, subsequent_indent="  " if text[0] == "-" else "", break_on_hyphens=False)
        for text in paragraphs
    ]
    return f"# {manifest.name} for {profile.title}\n\n{wrapped[0]}\n\n" + "\n".join(wrapped[1:]) + "\n"
