"""From a checkpoint of a family that phirt does not build to a bundle: `export_traced`.

Knows the order of work and what the two kinds of bundles hold. The graphs are `decoder`'s and `embedder`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from phirt.bundle.lora import DECODER
from phirt.bundle.manifest import (
    EMBEDDER,
    EmbedderManifest,
    Geometry,
    GraphSpec,
    Manifest,
    Rule,
    Tokens,
)
from phirt.embedder import Embedder
from phirt.errors import BundleError, ConfigError
from phirt_export.bundle import (
    GraphFiles,
    LimitOptions,
    copy_documents,
    data_digests,
    describe,
    limits_within,
    listed_files,
    producer,
    store_manifest,
)
from phirt_export.chat_files import TEMPLATE_NAME, TOKENIZER_NAME, pruned_tokenizer, special_tokens, token_id
from phirt_export.containers import open_weights
from phirt_export.families import OPTIMUM_REMEDY, read_document
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import DataFile
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import GPTQ, WeightFormat
from phirt_export.identity import identity
from phirt_export.narrow import narrow
from phirt_export.optimum_graphs.checkpoint import (
    SentenceOptions,
    is_decoder,
    largest,
    read_sentence_options,
    stated_length,
)
from phirt_export.optimum_graphs.decoder import build_traced_decoder, cache_shape
from phirt_export.optimum_graphs.embedder import build_embedder
from phirt_export.optimum_graphs.tracing import is_available, read_sizes, traced, tracer_versions
from phirt_export.optimum_graphs.weights import TracedWeights
from phirt_export.progress import ObservedSource, Progress, announce
from phirt_export.published.decoder import read_tokens
from phirt_export.published.layout import Published
from phirt_export.staging import Staging, staged_bundle
from phirt_export.text_files import read_text_files
from phirt_quant.weight_error import PartError, StoredSize, part_errors, part_sizes

_CONTEXT = 2048  # where a configuration says nothing, as with positions that are distances
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length")
_BITS = {True: 4, False: 8}  # of decoders and encoders, where nobody says
_WIDE, _WIDE_BLOCK, _NARROW_BLOCK = 1024, 128, 32


@dataclasses.dataclass(frozen=True)
class TracedOptions:
    """What an export is asked for, of what traced graphs know. None: phirt's choice."""

    bits: int | None
    block_size: int | None
    embedding_bits: int | None
    method: str
    limits: LimitOptions
    target: str
    name: str
    description: str
    progress: Progress | None = None
    errors: Callable[[list[PartError]], None] | None = None
    remarks: Callable[[str], None] | None = None


@dataclasses.dataclass(frozen=True)
class _Formats:
    matrix: WeightFormat
    table: WeightFormat

    def entry(self) -> dict[str, Any]:
        """What the manifest says about quantization."""
        return {
            "bits": self.matrix.bits,
            "block_size": self.matrix.block_size,
            "embedding_bits": self.table.bits,
            "method": self.matrix.method,
            "tracer": ", ".join(f"{name} {version}" for name, version in tracer_versions().items()),
        }


def export_traced(folder: Path, output: Path, options: TracedOptions) -> Path:
    """Export a checkpoint through optimum. The whole model is in memory meanwhile, in float32.

    Raises:
        ConfigError: optimum or transformers do not know the model, it is no text decoder and no encoder, its
            weights are pickled, or settings are asked for that need a family of phirt's.
        BundleError: the output cannot be written, or the tokenizer cannot serve.
    """
    if not is_available():
        kind = read_document(folder).shown("model_type")
        raise ConfigError(
            f"{folder} holds a model that phirt does not build itself (model_type {kind}); {OPTIMUM_REMEDY}"
        )
    open_weights(folder)  # names what is missing, damaged or pickled before anything else reads it
    answers = is_decoder(folder)
    sizes = read_sizes(folder)
    formats = _formats(options, sizes, answers)
    settings = {"formats": dataclasses.asdict(formats), "producer": producer(), "tracer": tracer_versions()}
    work = identity(folder, settings)
    write = _write_decoder if answers else _write_embedder
    with staged_bundle(output, work) as staging:
        announce(options.progress, "tracing the model with optimum")
        notices = write(staging, folder, sizes, formats, options)
    for line in notices:
        if options.remarks is not None:
            options.remarks(line)
    return output


def require_plain_settings(
    method: str | None, bits_per_weight: float | None, kv: str, base: Path | None, calibration: Sequence[Path]
) -> None:
    """Refuses what needs a model that phirt itself computes. Raises ConfigError."""
    asked = {
        f"method {GPTQ}": method == GPTQ,
        "bits_per_weight": bits_per_weight is not None,
        f"kv {kv}": kv != "float32",
        "a base": base is not None,
        "calibration": bool(calibration),
    }
    if refused := [name for name, is_asked in asked.items() if is_asked]:
        raise ConfigError(
            f"{', '.join(refused)} cannot be had for a family that phirt does not build; accepted are bits, "
            "block size, embedding bits, and the methods that look at weights alone"
        )


def _formats(options: TracedOptions, sizes: Any, answers: bool) -> _Formats:
    bits = _BITS[answers] if options.bits is None else options.bits
    width = largest(sizes, "hidden_size") or 0
    block = options.block_size or (_WIDE_BLOCK if width >= _WIDE else _NARROW_BLOCK)
    table = bits if options.embedding_bits is None else options.embedding_bits
    return _Formats(*(WeightFormat(b, block, options.method) for b in (bits, table)))


def _write_decoder(
    staging: Staging, folder: Path, sizes: Any, formats: _Formats, options: TracedOptions
) -> tuple[str, ...]:
    """Fill the folder with a bundle that answers; returns what is to be said of it."""
    vocab_size = _size(sizes, "vocab_size")
    published = Published(folder, read_document(folder), {})
    tokens = narrow(Tokens, read_tokens(published, vocab_size))
    texts = read_text_files(folder, vocab_size, tokens, {})
    context, notices = _context(sizes)
    limits = limits_within(context, options.limits)
    with traced(folder, "text-generation-with-past") as model:
        graph = model.graph
        cache = cache_shape(graph)
        geometry = Geometry(
            num_layers=cache.num_layers,
            num_heads=_size(sizes, "num_attention_heads"),
            num_kv_heads=cache.num_kv_heads,
            head_dim=cache.head_dim,
            hidden_size=_size(sizes, "hidden_size"),
            intermediate_size=_inner_size(sizes),
            vocab_size=vocab_size,
            context=context,
            rope=None,
        )
        weights = TracedWeights(graph, vocab_size)

        def build(store: WeightStore) -> None:
            build_traced_decoder(store, graph, weights, geometry, formats.matrix, formats.table)

        written = _write_graph(staging, DECODER, "decoder", weights, build, options)
        count = weights.count(graph)
    _write_documents(staging.folder, folder, texts.tokenizer)
    (staging.folder / TEMPLATE_NAME).write_bytes(texts.template.encode("utf-8"))
    store_manifest(
        Manifest(
            **_common(staging.folder, written, formats.entry() | {"weights": count}, options),
            geometry=geometry,
            tokens=tokens,
            chat_template=TEMPLATE_NAME,
            encoders={},
            adapters={},
            rules=(Rule((), None, {}),),
            limits=limits,
            template_names=texts.names,
            generation=texts.generation,
        )
    )
    return (*notices, *texts.notices)


def _write_embedder(
    staging: Staging, folder: Path, sizes: Any, formats: _Formats, options: TracedOptions
) -> tuple[str, ...]:
    """Fill the folder with an embedding model; returns what is to be said of it."""
    pooling = read_sentence_options(folder)
    vocab_size, width = _size(sizes, "vocab_size"), _size(sizes, "hidden_size")
    tokenizer = pruned_tokenizer(folder, vocab_size)
    context = _text_length(folder, sizes, pooling, options.limits)
    with traced(folder, "feature-extraction") as model:
        graph = model.graph
        weights = TracedWeights(graph, vocab_size)

        def build(store: WeightStore) -> None:
            build_embedder(store, graph, weights, width, pooling, formats.matrix, formats.table)

        written = _write_graph(staging, EMBEDDER, "text", weights, build, options)
        count = weights.count(graph)
    _write_documents(staging.folder, folder, tokenizer)
    store_manifest(
        EmbedderManifest(
            **_common(staging.folder, written, formats.entry() | {"weights": count}, options),
            width=width * len(pooling.poolings),
            context=context,
            pad=token_id(folder, special_tokens(folder).get("pad_token")) or 0,
            prompts=pooling.prompts,
        )
    )
    _try_embedder(staging.folder)
    unstated = "nothing beside the weights says how tokens become one vector: their mean is taken, as it is"
    return () if pooling.stated else (unstated,)


def _common(
    folder: Path, written: _Written, quantization: dict[str, Any], options: TracedOptions
) -> dict[str, Any]:
    """What the manifests of both kinds say alike; all files are there."""
    parts = {part: {"weights": size.weights, "bytes": size.bytes} for part, size in written.sizes.items()}
    return {
        "name": options.name,
        "description": options.description,
        "producer": producer(),
        "files": listed_files(folder, data_digests({written.name: written.files})),
        "graphs": {written.name: written.files.spec},
        "tokenizer": TOKENIZER_NAME,
        "quantization": quantization | {"parts": parts},
        "folder": folder,
        "fingerprint": "",
    }


@dataclasses.dataclass(frozen=True)
class _Written:
    """The one graph of a bundle, and what its matrices take by part."""

    name: str
    files: GraphFiles
    sizes: Mapping[str, StoredSize]


def _write_graph(
    staging: Staging,
    name: str,
    part: str,
    weights: TracedWeights,
    build: Callable[[WeightStore], None],
    options: TracedOptions,
) -> _Written:
    shapes = {matrix: weights.shape(matrix) for matrix in weights.matrices}
    source = ObservedSource(weights, shapes, options.progress)
    with DataFile(staging.folder / f"{name}.data", staging.journal, source.note_kept) as data:
        store = WeightStore(GraphBuilder(name, data), source)
        build(store)
    file = f"{name}.onnx"
    ir.save(store.g.model(producer()), staging.folder / file)
    if options.errors is not None and store.errors:
        options.errors(part_errors(part, store.errors))
    inputs, outputs = describe(store.g.inputs), describe(store.g.outputs)
    spec = GraphSpec(file, (data.path.name,), options.target, inputs, outputs)
    return _Written(name, GraphFiles(spec, data.sha256), part_sizes(part, store.sizes))


def _write_documents(folder: Path, checkpoint: Path, tokenizer: bytes) -> None:
    (folder / TOKENIZER_NAME).write_bytes(tokenizer)
    copy_documents(checkpoint, folder)


def _context(sizes: Any) -> tuple[int, tuple[str, ...]]:
    """Positions that a decoder can tell apart, and what is to be said of them. A window of the attention ends
    them: past it, what the traced graph keeps would be cut.
    """
    context = largest(sizes, *_CONTEXT_KEYS)
    notices: tuple[str, ...] = ()
    if context is None:
        context = _CONTEXT
        notices = (f"the configuration names no context: {_CONTEXT} positions are taken",)
    window = largest(sizes, "sliding_window", "attention_window", "window_size")
    if window is not None and window < context and getattr(sizes, "use_sliding_window", True) is not False:
        return window, (*notices, f"the context ends where the attention's window does: {window} positions")
    return context, notices


def _text_length(folder: Path, sizes: Any, pooling: SentenceOptions, limits: LimitOptions) -> int:
    """Tokens of one text that are looked at."""
    sizes_known = (
        pooling.max_tokens,
        largest(sizes, *_CONTEXT_KEYS),
        stated_length(folder),
        limits.context,
    )
    return min((size for size in sizes_known if size is not None), default=_CONTEXT)


def _try_embedder(folder: Path) -> None:
    """Embeds a text that fills the context. Raises ConfigError where the model cannot."""
    with Embedder(folder) as embedder:
        try:
            embedder.embed("a " * embedder.context)
        except BundleError as error:
            raise ConfigError(
                f"the model cannot read texts of {embedder.context} tokens, which its configuration says; "
                "give fewer with --max-context"
            ) from error


def _inner_size(sizes: Any) -> int:
    """Width inside the MLP; where a configuration leaves it to its class, that is 4 times the model's."""
    found = largest(sizes, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    return 4 * _size(sizes, "hidden_size") if found is None else found


def _size(sizes: Any, name: str) -> int:
    found = largest(sizes, name)
    if found is None:
        raise ConfigError(
            f"the configuration of {type(sizes).__name__} has no {name!r}, which a bundle states"
        )
    return found
