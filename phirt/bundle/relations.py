"""Whether the parts of a manifest fit together: files, graphs, geometry, tokens, encoders, adapters, rules,
limits.

Knows what each part promises another. Knows nothing of bytes, files on disk or encoder kinds; what a kind
wants of its graph and its constants is checked by its own module.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence

from phirt.bundle.adapters import first_fitting
from phirt.bundle.lora import ACTIVE_INPUT, DECODER, LORA_DECODER, input_names, projections
from phirt.bundle.manifest import (
    EMBEDDER,
    NO_ADAPTER,
    Contents,
    EmbedderManifest,
    GraphSpec,
    Manifest,
    Rule,
    TensorSpec,
)
from phirt.bundle.static import STATIC_GRAPHS, static_tensors
from phirt.bundle.variants import as_variant

_MAX_PART = 200  # of a file's path, in characters
_FLOATS = ("float32", "float16")

# A size that must be that one, or None for any, and for any name of a dynamic one.
Wanted = Sequence[int | None]


def contradictions(manifest: Manifest | EmbedderManifest) -> Iterator[str]:
    """What does not fit, one line each; nothing for a manifest that is sound."""
    if isinstance(manifest, EmbedderManifest):
        yield from _files(manifest, (manifest.tokenizer,))
        yield from _embedder(manifest)
        return
    yield from _files(manifest, (manifest.chat_template, manifest.tokenizer))
    if manifest.graphs or not manifest.variants:
        yield from _graphs(manifest)
    yield from _tokens(manifest)
    yield from _rules(manifest)
    limit, context = manifest.limits.context, manifest.geometry.context
    if limit is not None and limit > context:
        yield f"limits: context {limit} is more than the {context} positions of the geometry"
    for name, variant in manifest.variants.items():
        place = f"variants[{name!r}]"
        for encoder in variant.encoders:
            if encoder not in manifest.encoders:
                yield f"{place}: encoder {encoder!r} is none of 'encoders', {_list(manifest.encoders)}"
        yield from (f"{place}: {problem}" for problem in _graphs(as_variant(manifest, name)))


def _graphs(manifest: Manifest) -> Iterator[str]:
    """What does not fit in a set of graphs that is run together."""
    decoders = (DECODER, LORA_DECODER) if manifest.static is None else STATIC_GRAPHS
    needed = (DECODER,) if manifest.static is None else STATIC_GRAPHS
    for name in needed:
        if name not in manifest.graphs:
            yield f"'graphs' has no {name!r}"
            return
    for name in decoders:
        if name in manifest.graphs:
            yield from (_decoder if manifest.static is None else _static_decoder)(manifest, name)
    yield from _encoders(manifest, decoders)


def misfit(tensors: Mapping[str, TensorSpec], name: str, dtypes: Sequence[str], shape: Wanted) -> str | None:
    """What is wrong with the tensor `name`; None where it is there, of one of these dtypes and this shape."""
    found = tensors.get(name)
    if found is None:
        return f"{name!r} is missing"
    if found.dtype not in dtypes:
        return f"{name!r} is {found.dtype}, expected {' or '.join(dtypes)}"
    fits = len(found.shape) == len(shape) and all(
        size is None or size == given for size, given in zip(shape, found.shape, strict=True)
    )
    if fits:
        return None
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    return f"{name!r} has the shape {list(found.shape)}, expected [{wanted}]"


def _files(manifest: Contents, used_beside: Sequence[str]) -> Iterator[str]:
    for name in manifest.files:
        odd = any(c in "\\:" or ord(c) < 32 for c in name)
        if odd or any(part in ("", ".", "..") or len(part) > _MAX_PART for part in name.split("/")):
            yield (
                f"file name {name!r:.300} leaves the bundle or is not plain; accepted: relative names inside "
                "the bundle"
            )
    used = [*used_beside]
    graphs = [*manifest.graphs.values()]
    if isinstance(manifest, Manifest):
        graphs += [graph for variant in manifest.variants.values() for graph in variant.graphs.values()]
    for graph in graphs:
        used += [graph.file, *graph.data]
    for name in dict.fromkeys(used):
        if name not in manifest.files:
            yield f"{name!r} is used but not listed in 'files'"


def _embedder(manifest: EmbedderManifest) -> Iterator[str]:
    if EMBEDDER not in manifest.graphs:
        yield f"'graphs' has no {EMBEDDER!r}"
        return
    graph = manifest.graphs[EMBEDDER]
    yield from _names(EMBEDDER, graph)
    taken = {tensor.name: tensor for tensor in graph.inputs}
    given = {tensor.name: tensor for tensor in graph.outputs}
    problems = [
        *(misfit(taken, name, ("int64",), (None, None)) for name in ("input_ids", "attention_mask")),
        misfit(given, "embeddings", ("float32",), (None, manifest.width)),
    ]
    yield from (f"graphs[{EMBEDDER!r}]: {problem}" for problem in problems if problem)


def _decoder(manifest: Manifest, name: str) -> Iterator[str]:
    geometry, graph = manifest.geometry, manifest.graphs[name]
    yield from _names(name, graph)
    taken = {tensor.name: tensor for tensor in graph.inputs}
    given = {tensor.name: tensor for tensor in graph.outputs}
    kept = ("float32", "float16", "int8")
    cache = (1, geometry.num_kv_heads, None, geometry.head_dim)
    layers = [f"{layer}.{part}" for layer in range(geometry.num_layers) for part in ("key", "value")]
    problems = [
        misfit(taken, "input_ids", ("int64",), (1, None)),
        misfit(taken, "media_features", _FLOATS, (None, geometry.hidden_size)),
        *(misfit(taken, one, ("int64",), (1,)) for one in ("route", "num_logits")),
        *(misfit(taken, one, ("int32",), (1,)) for one in ("seqlens_k", "total_sequence_length")),
        misfit(given, "logits", _FLOATS, (1, None, geometry.vocab_size)),
        *(misfit(taken, f"past_key_values.{layer}", kept, cache) for layer in layers),
        *(misfit(given, f"present.{layer}", kept, cache) for layer in layers),
    ]
    yield from (f"graphs[{name!r}]: {problem}" for problem in problems if problem)
    if name == LORA_DECODER:
        yield from _adapter_inputs(manifest, taken)
    beyond = sum(one.startswith("past_key_values.") for one in taken) - len(layers)
    if beyond > 0:
        yield f"graphs[{name!r}]: {beyond} caches beyond those of its {geometry.num_layers} layers"


def _static_decoder(manifest: Manifest, name: str) -> Iterator[str]:
    assert manifest.static is not None
    graph = manifest.graphs[name]
    yield from _names(name, graph)
    sides = static_tensors(manifest.geometry, manifest.static, name, manifest.adapters)
    for wanted, tensors in zip(sides, (graph.inputs, graph.outputs), strict=True):
        found = {tensor.name: tensor for tensor in tensors}
        for tensor, (dtypes, shape) in wanted.items():
            if (problem := misfit(found, tensor, dtypes, shape)) is not None:
                yield f"graphs[{name!r}]: {problem}"
    for spec in graph.inputs:
        if spec.name not in sides[0]:
            yield f"graphs[{name!r}]: nothing would feed its input {spec.name!r}"


def _adapter_inputs(manifest: Manifest, taken: Mapping[str, TensorSpec]) -> Iterator[str]:
    """What the graph for a user's own adapter lacks of its inputs."""
    if (problem := misfit(taken, ACTIVE_INPUT, ("bool",), (1,))) is not None:
        yield f"graphs[{LORA_DECODER!r}]: {problem}"
    for layer in range(manifest.geometry.num_layers):
        for projection in projections(manifest.geometry):
            a, b = input_names(layer, projection)
            wanted: Mapping[str, Wanted] = {a: (projection.inputs, None), b: (None, projection.outputs)}
            for name, shape in wanted.items():
                if (problem := misfit(taken, name, _FLOATS, shape)) is not None:
                    yield f"graphs[{LORA_DECODER!r}]: {problem}"


def _names(part: str, graph: GraphSpec) -> Iterator[str]:
    for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        counts = collections.Counter(tensor.name for tensor in tensors)
        if len(counts) < len(tensors):
            yield f"graphs[{part!r}]: {side} share the name {counts.most_common(1)[0][0]!r}"


def _tokens(manifest: Manifest) -> Iterator[str]:
    vocab_size, tokens = manifest.geometry.vocab_size, manifest.tokens
    ids = {"tokens: bos": (tokens.bos,), "tokens: pad": (tokens.pad,), "tokens: eos": tokens.eos}
    ids |= {f"encoders[{name!r}]: placeholder": (e.placeholder,) for name, e in manifest.encoders.items()}
    for place, values in ids.items():
        for value in values:
            if value >= vocab_size:
                yield f"{place} is {value}, expected a whole number from 0 to {vocab_size - 1}"
    seen: dict[int, str] = dict.fromkeys(tokens.eos, "eos") | {tokens.bos: "bos"}
    for name, encoder in manifest.encoders.items():
        taken = seen.setdefault(encoder.placeholder, f"the placeholder of {name!r}")
        if taken != f"the placeholder of {name!r}":
            yield f"encoders[{name!r}]: placeholder {encoder.placeholder} is {taken} too"


def _encoders(manifest: Manifest, decoders: Sequence[str]) -> Iterator[str]:
    used = set(decoders)
    for name, encoder in manifest.encoders.items():
        place = f"encoders[{name!r}]"
        if encoder.graph not in manifest.graphs or encoder.graph in used:
            known = _list(manifest.graphs)
            yield f"{place}: graph {encoder.graph!r} is no graph of its own; 'graphs' has {known}"
            continue
        used.add(encoder.graph)
        graph = manifest.graphs[encoder.graph]
        yield from _names(encoder.graph, graph)
        # Or the graph gives the features under each of them.
        several = len(graph.outputs) == len(encoder.projectors) > 1
        chooses, width = has_projector_input(graph) or several, manifest.geometry.hidden_size
        if chooses != (len(encoder.projectors) > 1):
            yield (
                f"{place}: its projectors are {_list(encoder.projectors)}, and its graph has "
                f"{'an' if chooses else 'no'} input 'projector' to choose by"
            )
        if not any(tensor.shape[-1:] == (width,) for tensor in graph.outputs):
            yield f"{place}: no output of its graph has the decoder's width of {width}"
    for graph_name in manifest.graphs:
        if graph_name not in used:
            yield f"graphs[{graph_name!r}] belongs to no encoder"
    if len(set(manifest.modalities)) < len(manifest.encoders):
        yield f"two encoders take the same modality: {_list(manifest.modalities)}"


def has_projector_input(graph: GraphSpec) -> bool:
    """Whether an encoder graph is told which projector to use."""
    return any(tensor.name == "projector" for tensor in graph.inputs)


def _rules(manifest: Manifest) -> Iterator[str]:
    ids = [adapter.id for adapter in manifest.adapters.values()]
    if len(set(ids)) != len(ids):
        yield f"'adapters' share an id: {sorted(ids)}"
    if NO_ADAPTER in manifest.adapters:
        yield f"an adapter is called {NO_ADAPTER!r}, which stands for the base weights"
    for index, rule in enumerate(manifest.rules):
        yield from _rule(manifest, rule, f"rules[{index}]")
    if manifest.rules[-1].modalities:
        yield "the last of 'rules' must fit every conversation: its 'modalities' must be empty"
        return
    named = {modality for rule in manifest.rules for modality in rule.modalities}
    for name, encoder in manifest.encoders.items():
        if encoder.modality not in named:
            yield f"encoders[{name!r}] takes {encoder.modality} input, which no rule names"
    yield from _choices(manifest)
    for adapter in manifest.adapters:
        if adapter not in {rule.adapter for rule in manifest.rules}:
            yield f"adapters[{adapter!r}] is used by no rule"


def _rule(manifest: Manifest, rule: Rule, place: str) -> Iterator[str]:
    if rule.adapter is not None and rule.adapter not in manifest.adapters:
        yield f"{place}: adapter {rule.adapter!r} is unknown; 'adapters' has {_list(manifest.adapters)}"
    for modality in rule.modalities:
        if modality not in manifest.modalities:
            yield f"{place}: no encoder takes {modality} input"
    for name, projector in rule.projectors.items():
        if name not in manifest.encoders:
            known = _list(manifest.encoders)
            yield f"{place}: a projector for {name!r}, which is no encoder; 'encoders' has {known}"
        elif projector not in manifest.encoders[name].projectors:
            known = _list(manifest.encoders[name].projectors)
            yield f"{place}: projector {projector!r} is unknown; encoders[{name!r}] has {known}"


def _choices(manifest: Manifest) -> Iterator[str]:
    """Every conversation must find its projectors, and every rule a conversation."""
    reached = set()
    kinds = sorted(set(manifest.modalities))
    for modalities in (some for n in range(len(kinds) + 1) for some in itertools.combinations(kinds, n)):
        rule = first_fitting(manifest.rules, modalities)
        index = next(i for i, one in enumerate(manifest.rules) if one is rule)
        reached.add(index)
        for name, encoder in manifest.encoders.items():
            decided = len(encoder.projectors) == 1 or name in rule.projectors
            if not decided and encoder.modality in modalities:
                known = _list(encoder.projectors)
                yield f"rules[{index}]: no projector for encoders[{name!r}], which has {known}"
    for index in range(len(manifest.rules)):
        if index not in reached:
            yield f"rules[{index}] is never reached: one before it fits whatever it fits"


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
