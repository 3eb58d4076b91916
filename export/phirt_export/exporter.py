"""From a checkpoint to a bundle: `export_bundle`.

Knows which graphs a model needs, in which formats, and the order of work. Weights stream: one tensor is read,
quantized and written at a time. Knows nothing of how nodes are laid out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from phirt.bundle.lora import DECODER, LORA_DECODER
from phirt.bundle.manifest import CPU_TARGET, MANIFEST_NAME, GraphSpec
from phirt.errors import ConfigError
from phirt_export import calibration as calibrating
from phirt_export.bit_budget import BitBudget
from phirt_export.bundle import (
    GraphFiles,
    LimitOptions,
    copy_documents,
    describe,
    model_limits,
    producer,
    write_manifest,
)
from phirt_export.chat_files import TEMPLATE_NAME, TOKENIZER_NAME
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.encoders import EncoderPlan, tower_plans
from phirt_export.format_plan import plan_formats
from phirt_export.formats import (
    BundleFormats,
    choice_entry,
    size_entry,
)
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import DataFile
from phirt_export.graphs.decoder import KVScales, build_decoder
from phirt_export.graphs.linear import HessianSource, KeptSource, WeightSource, WeightStore
from phirt_export.graphs.weight_format import FLOAT_BITS, Chosen, WeightFormat
from phirt_export.hub.names import published_name
from phirt_export.identity import identity
from phirt_export.journal import Journal
from phirt_export.kept import kept_entry, kept_remark
from phirt_export.optimum_graphs.checkpoint import is_for_optimum
from phirt_export.optimum_graphs.exporter import TracedOptions, export_traced, require_plain_settings
from phirt_export.progress import ObservedSource, Progress, announce
from phirt_export.reference import ModelConfig
from phirt_export.staging import require_replaceable, staged_bundle
from phirt_export.targets import known_targets, read_target
from phirt_export.text_files import TextFiles, read_text_files
from phirt_export.variants.adding import add_targets, refuse_settings, require_chips, write_variants
from phirt_export.variants.sizes import StaticOptions
from phirt_quant.weight_error import PartError, StoredSize, part_errors, part_sizes

# Appends a graph to its store's builder.
GraphBuild = Callable[[WeightStore], None]
# What a checkpoint's keys and values may be kept as; targets have types of their own.
_CACHE_TYPES = ("float32", "int8")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What of a bundle is to be made from calibration data."""

    weights: bool
    cache: bool
    formats: bool


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What was made from calibration data, or found in the checkpoint.

    `hessians` are for formats of the method `gptq`, and computed when they are asked for; `kv_scales` for a
    cache of int8; tensors in `chosen` have the format given there; `kept` has the blocks of those that keep
    theirs.
    """

    hessians: HessianSource | None = None
    kv_scales: Sequence[KVScales] | None = None
    chosen: Chosen = dataclasses.field(default_factory=dict)
    kept: KeptSource | None = None


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    base: Path | None = None,
    targets: Sequence[str] = ("cpu",),
    bits: int | None = None,
    block_size: int | None = None,
    embedding_bits: int | None = None,
    adapter_bits: int = 8,
    encoder_bits: int = 8,
    method: str | None = None,
    bits_per_weight: float | None = None,
    kv: str = "float32",
    calibration: Sequence[Path] = (),
    limits: LimitOptions | None = None,
    static: StaticOptions | None = None,
    chips: Sequence[str] = (),
    name: str | None = None,
    description: str = "",
    progress: Progress | None = None,
    errors: Callable[[list[PartError]], None] | None = None,
    remarks: Callable[[str], None] | None = None,
) -> Path:
    """Export a checkpoint as a bundle.

    Weights that are finished stay when the call is interrupted or the process killed: the same call
    calibrates again, goes on from there and ends with the same bytes.

    Memory is bounded by a few slabs of one tensor (`bits=32`: by the largest projection; `gptq`: by two
    layers in float32, twice the activations between two layers, those inside one, and five times the square
    of the longest input in float32, 3.8 GB in all at a width of 3072 with 8192 inside; chosen bits: by 2 GB
    there).

    Args:
        checkpoint: the folder in any layout of `layouts`, with its tokenizer.json and its chat template; a
            MODEL_CARD.md, a LICENSE and a NOTICE in it are taken along. One of another family, or an
            embedding model, is traced by optimum, see `optimum_graphs`. Or a bundle, which is given more
            targets; or a GGUF file, or the folder of a PEFT adapter, which is merged into its base.
        output: the bundle's folder; an existing bundle is replaced once the new one is complete.
        base: the folder of that base; None for the one that the adapter names.
        targets: what the graphs are for, names of `phirt_export.targets`. The graphs for others than `cpu`
            are made from those for it, which are left out of the bundle where it is not among them.
        bits: 4, 6, 8 or 32 (everything unquantized) for the base projections, all alike. None: blocks of 4
            and 8 bits that the checkpoint itself holds are kept bit for bit, and what it holds in 5 or 6 bits
            has 8; where it is not quantized, each projection and each part of the table take 4, 6 or 8 bits,
            by what rounding them costs the predictions on the calibration data, so that the bundle is as
            small as it can be at little cost.
        block_size: weights that share a scale, a power of two, for any width, or about so many where bits are
            chosen; None chooses 128 for wide models and 32 for narrow ones.
        embedding_bits: 4, 6, 8 or 32 for the table shared by embedding and head, and then all projections are
            alike; None for `bits`.
        adapter_bits: 4, 6, 8 or 32 for LoRA matrices.
        encoder_bits: 4, 6, 8 or 32 for the linears of the encoders.
        method: `rtn` rounds to nearest, `mse` searches scales, `gptq` makes good what rounding, also that of
            the matrices before, does to the outputs on the calibration data. None: `gptq` for 4 bits, up to
            a billion weights in the layers, and `mse` otherwise.
        bits_per_weight: the size that base projections and token table have together, scales included; each
            takes 4 bits in longer or shorter blocks, 6 or 8, so that the predictions on the calibration
            data change least. None: see `bits`.
        kv: type of cached keys and values: `float32`, or `int8` with scales of each channel that fit the
            calibration data: a quarter of the memory, faster decode steps behind long prompts, slower
            prefills.
        calibration: files and folders of text, pictures and recordings, see `calibration.read_samples`;
            without any, text of phirt's own serves `gptq` and the choice of bits.
        limits: what a request may cost at most, where that is another than the model's own.
        static: sizes and bits of graphs of one size, for targets that have such.
        chips: names of chips that graphs are compiled for as well.
        name: the bundle's name; the checkpoint folder's by default.
        description: one line about the model.
        progress: called at once, and then as weights are read.
        errors: called once, at the end, with what quantization has cost each part of the model.
        remarks: called with a line for each thing that the bundle has otherwise than the checkpoint, and for
            what is kept of one that is quantized already.

    Returns:
        `output`.

    Raises:
        ConfigError: unsupported settings, a checkpoint that does not fit its configuration, or an output that
            holds something other than a bundle, or is being written by another export.
        BundleError: the output cannot be written, or the tokenizer.json cannot serve.
    """
    if not targets:
        raise ConfigError(f"no target is named; choose from {', '.join(known_targets())}")
    for target in targets:
        read_target(target)
    if kv not in _CACHE_TYPES:
        raise ConfigError(f"keys and values cannot be kept as {kv!r}; choose from {', '.join(_CACHE_TYPES)}")
    require_chips(targets, chips)
    if (checkpoint / MANIFEST_NAME).is_file():
        refuse_settings({
            "block_size": block_size, "embedding_bits": embedding_bits, "adapter_bits": adapter_bits,
            "encoder_bits": encoder_bits, "method": method, "bits_per_weight": bits_per_weight, "kv": kv,
            "limits": limits, "name": name, "base": base,
        })  # fmt: skip
        told = functools.partial(announce, progress)
        options = static or StaticOptions(bits=8 if bits is None else bits)
        return add_targets(
            checkpoint, output, targets, options=options, chips=chips, calibration=calibration, note=told
        )
    announce(progress, "opening the checkpoint")
    require_replaceable(output)  # calibration takes long
    if is_for_optimum(checkpoint):
        require_plain_settings(method, bits_per_weight, kv, base, calibration)
        traced = TracedOptions(
            bits, block_size, embedding_bits, method or "mse", limits or LimitOptions(), _only_cpu(targets),
            name or published_name(checkpoint), description, progress, errors, remarks,
        )  # fmt: skip
        return export_traced(checkpoint, output, traced)
    opened = Checkpoint(checkpoint, base)
    config = opened.config
    allowed = model_limits(config, limits or LimitOptions())
    others = [target for target in targets if target != CPU_TARGET]
    for_others = static or StaticOptions(bits=bits if bits in (4, 8) else 8)
    for target in others:
        read_target(target).check_static(for_others, config.decoder.rope.original_context)
    if CPU_TARGET not in targets:  # the graphs that variants are made from and that do not stay
        bits, block_size, embedding_bits, method, bits_per_weight = 8, None, None, "mse", None
    plan = plan_formats(
        opened, bits=bits, block_size=block_size, embedding_bits=embedding_bits, adapter_bits=adapter_bits,
        encoder_bits=encoder_bits, method=method, bits_per_weight=bits_per_weight,
    )  # fmt: skip
    placeholders = {of.name: of.spec.placeholder for of in opened.encoders}
    # One that no bundle opens with is refused at once.
    texts = read_text_files(opened.folder, config.decoder.vocab_size, config.tokens, placeholders)
    wanted = Wanted(plan.needs_moments, kv == "int8", plan.budget is not None)
    if calibration:
        announce(progress, "reading the calibration data")
    samples = _samples(opened, calibration, wanted)
    settings: dict[str, Any] = {"formats": dataclasses.asdict(plan.formats), "producer": producer(), "kv": kv}
    if samples:
        settings["calibration"] = calibrating.fingerprint(samples)
    calibrated = _calibrate(opened, samples, wanted, plan.budget, progress)
    if plan.own:
        calibrated = dataclasses.replace(calibrated, chosen=plan.chosen_by(opened), kept=opened)
    # An interrupted export goes on only with the formats that it began with.
    settings["chosen"] = {t: [dataclasses.asdict(rows) for rows in of] for t, of in calibrated.chosen.items()}
    work = identity(opened.folder, settings | {"weights": opened.state})
    with staged_bundle(output, work) as staging:
        measured: list[PartError] = []
        sizes: dict[str, StoredSize] = {}
        graphs = write_graphs(
            staging.folder,
            config,
            opened,
            plan.formats,
            calibrated,
            plans=opened.encoders,
            progress=progress,
            journal=staging.journal,
            measured=measured,
            sizes=sizes,
        )
        _write_documents(staging.folder, opened.folder, texts)
        write_manifest(
            staging.folder,
            config,
            opened.encoders,
            graphs,
            name=name or published_name(checkpoint if checkpoint.is_dir() else opened.folder),
            description=description,
            limits=allowed,
            quantization=plan.formats.manifest_entry()
            | choice_entry(bits_per_weight, calibrated.chosen)
            | kept_entry(opened, plan.own)
            | {"kv_cache": kv}
            | size_entry(sizes, opened.shapes),
            template_names=texts.names,
            generation=texts.generation,
        )
        if others:
            data = calibrating.read_samples(list(calibration) or [calibrating.OWN_TEXT])
            told = functools.partial(announce, progress)
            write_variants(staging.folder, targets, data, for_others, chips, told)
    if errors is not None:
        errors(measured)
    for line in (
        *opened.notices,
        *texts.notices,
        kept_remark(opened, plan.own if bits != FLOAT_BITS else None),
    ):
        if remarks is not None and line:
            remarks(line)
    return output


def write_graphs(
    folder: Path,
    config: ModelConfig,
    source: WeightSource,
    formats: BundleFormats,
    calibrated: Calibrated = Calibrated(),
    *,
    plans: Sequence[EncoderPlan] | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
    measured: list[PartError] | None = None,
    sizes: dict[str, StoredSize] | None = None,
) -> dict[str, GraphFiles]:
    """Write decoder and, where the model has them, encoder graphs; returns them by manifest name.

    `plans` are the encoders, those of the model's own towers by default; `journal` is what an interrupted run
    has left in `folder`; quantization errors are added to `measured`, what each part takes to `sizes`.
    """
    plans = tower_plans(config) if plans is None else plans
    shapes = expected_shapes(config)
    for plan in plans:
        shapes |= plan.shapes
    observed = ObservedSource(source, shapes, progress)
    width = config.decoder.hidden_size

    def decoder(takes_adapters: bool) -> GraphBuild:
        scales = calibrated.kv_scales
        return lambda store: build_decoder(
            store, config, formats.base, formats.adapter, formats.embedding, scales, takes_adapters
        )

    # Graphs of one part share its data file.
    parts: dict[str, dict[str, GraphBuild]] = {
        "decoder": {DECODER: decoder(False), LORA_DECODER: decoder(True)}
    }
    for plan in plans:
        build = functools.partial(_build_encoder, plan, width, formats.encoder)
        parts[plan.name] = {plan.spec.graph: build}
    graphs: dict[str, GraphFiles] = {}
    for part, builds in parts.items():
        written, store = _write_part(folder, part, observed, builds, journal, calibrated)
        graphs |= written
        if measured is not None:
            measured += part_errors(part, store.errors)
        if sizes is not None:
            sizes |= part_sizes(part, store.sizes)
    return graphs


def _write_part(
    folder: Path,
    part: str,
    source: ObservedSource,
    builds: Mapping[str, GraphBuild],
    journal: Journal | None,
    calibrated: Calibrated,
) -> tuple[dict[str, GraphFiles], WeightStore]:
    """Write graphs, by name, over one data file; returns them with the store that has filled it."""
    stores: dict[str, WeightStore] = {}
    with DataFile(folder / f"{part}.data", journal, source.note_kept) as data:
        first = WeightStore(
            GraphBuilder(part, data), source, calibrated.hessians, calibrated.chosen, calibrated.kept
        )
        for name, build in builds.items():
            stores[name] = first.onto(GraphBuilder(name, data)) if stores else first
            build(stores[name])
    files = {}
    for name, store in stores.items():
        file, model = f"{name}.onnx", store.g.model(producer())
        ir.save(model, folder / file)
        inputs, outputs = describe(store.g.inputs), describe(store.g.outputs)
        files[name] = GraphFiles(GraphSpec(file, (data.path.name,), CPU_TARGET, inputs, outputs), data.sha256)
    return files, first


def _only_cpu(targets: Sequence[str]) -> str:
    """The one target that traced graphs are for."""
    if list(targets) != [CPU_TARGET]:
        raise ConfigError(
            f"models that optimum traces are exported for {CPU_TARGET} alone, not for {', '.join(targets)}"
        )
    return CPU_TARGET


def _build_encoder(plan: EncoderPlan, width: int, form: WeightFormat, store: WeightStore) -> None:
    plan.build(store, width, form)


def _write_documents(folder: Path, checkpoint: Path, texts: TextFiles) -> None:
    """What a bundle has beside its graphs: tokenizer, chat template, the checkpoint's card and licences."""
    (folder / TOKENIZER_NAME).write_bytes(texts.tokenizer)
    (folder / TEMPLATE_NAME).write_bytes(texts.template.encode("utf-8"))  # its line breaks as they are
    copy_documents(checkpoint, folder)


def _samples(checkpoint: Checkpoint, paths: Sequence[Path], wanted: Wanted) -> list[calibrating.Sample]:
    if not (wanted.weights or wanted.formats or wanted.cache):
        return []
    if wanted.cache and not paths:
        raise ConfigError(
            "kv int8 looks at what the model computes and needs data like that of its use: give text, images "
            "and recordings with --calibration, or keep kv float32"
        )
    return calibrating.read_samples(paths) if paths else calibrating.own_samples(checkpoint)


def _calibrate(
    checkpoint: Checkpoint,
    samples: Sequence[calibrating.Sample],
    wanted: Wanted,
    budget: BitBudget | None,
    progress: Progress | None,
) -> Calibrated:
    if not samples:
        return Calibrated()
    tokens = calibrating.HESSIAN_TOKENS if wanted.weights else calibrating.RANGE_TOKENS
    sequences = calibrating.encode_samples(checkpoint, samples, tokens)
    observed = ObservedSource(checkpoint, expected_shapes(checkpoint.config), progress)

    def stream(route_tokens: int) -> calibrating.LayerStream:
        some = calibrating.thinned(sequences, route_tokens)
        return calibrating.LayerStream(checkpoint, checkpoint.config, some)

    chosen: Chosen = {}
    if budget is not None:
        few = stream(calibrating.sensitivity_tokens(checkpoint.config.decoder))
        chosen = budget.choose(calibrating.rounding_costs(few, budget.formats, observed.note_look))
    scales = None
    if wanted.cache:
        scales = calibrating.kv_scales(stream(calibrating.RANGE_TOKENS), observed.note_look)
    hessians = calibrating.Hessians(stream(tokens)) if wanted.weights else None
    return Calibrated(hessians, scales, chosen)
