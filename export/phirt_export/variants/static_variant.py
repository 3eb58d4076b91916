"""A variant of graphs of one size: decoder and encoders of a bundle, calibrated on what the bundle is shown.

Knows the order of work, names of files, and what the manifest says of the result. How graphs are cut and
quantized, other modules know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from phirt.bundle.lora import DECODER
from phirt.bundle.manifest import CPU_TARGET, EncoderSpec, GraphSpec, Manifest, StaticShapes, Variant
from phirt.bundle.static import DECODE, EMBED, GATE, HEAD, LAYER_INPUTS, PREFILL, layer_names
from phirt.encoders import phi4mm_crops
from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.encoders.phi4mm_image import ImageConstants
from phirt.encoders.windows import windows
from phirt.errors import ConfigError
from phirt.fields import Fields, read_dataclass
from phirt.generate.sequence import Prompt, feature_rows
from phirt_export.bundle import describe
from phirt_export.calibration.samples import Sample
from phirt_export.graphs.data_file import DataFile
from phirt_export.targets.passes.quantize import Observed, WeightScheme, quantized
from phirt_export.targets.profile import TargetProfile
from phirt_export.variants import static_encoders
from phirt_export.variants.prompts import Shown, show
from phirt_export.variants.ranges import Observer, open_plain
from phirt_export.variants.rewriter import rewritten
from phirt_export.variants.sizes import StaticOptions
from phirt_export.variants.static_decoder import (
    MASKED,
    DecoderSource,
    build_embed,
    build_head,
    build_layers,
)
from phirt_export.variants.storing import store_graph
from phirt_export.variants.weight_only import with_stored_weights

Array = npt.NDArray[Any]
Note = Callable[[str], None]

# What a masked score keeps above the least one of a token's own, in nats.
_MASK_MARGIN = 20.0


class StaticVariant:
    """Builds the variant from the bundle in `folder`, and writes its files there, named after the target."""

    def __init__(
        self, manifest: Manifest, target: str, profile: TargetProfile, options: StaticOptions, note: Note
    ) -> None:
        self._manifest, self._target, self._profile = manifest, target, profile
        self._folder, self._note, self._options = manifest.folder, note, options
        self._static = profile.shapes_for(options, manifest.geometry.original_context)
        self._source = DecoderSource.of(ir.load(manifest.path(manifest.graphs[DECODER].file)))
        self._graphs: dict[str, GraphSpec] = {}
        self._encoders: dict[str, EncoderSpec] = {}

    def write(self, generator: Any, samples: Sequence[Sample], *, own_files: bool) -> Variant:
        """Writes all graphs. `own_files`: with what they share with the bundle's other graphs copied."""
        shown = Shown()
        if self._profile.activations is not None:
            self._note("showing the bundle its calibration data")
            shown = show(generator, samples, self._static.window)
        with DataFile(self._folder / f"{self._target}.data") as data:
            self._decoder(data, shown, own_files)
            for name in self._manifest.encoders:
                self._encoder(name, data, shown)
        return Variant(self._profile.providers, self._graphs, self._encoders, self._static)

    def _decoder(self, data: DataFile, shown: Shown, own_files: bool) -> None:
        geometry, adapters, static = self._manifest.geometry, tuple(self._manifest.adapters), self._static
        layers = {
            name: build_layers(self._source, geometry, adapters, static, tokens)
            for name, tokens in ((PREFILL, static.prefill), (DECODE, 1))
        }
        head, masked, seen, heads = build_head(self._source, geometry), MASKED, Observed({}), Observed({})
        if self._profile.activations is not None:
            self._note("measuring the decoder")
            masked, seen, heads = self._observed(layers[PREFILL], head, shown)
        for name, model in layers.items():
            self._store(name, model, seen, data)
        # The head weighs little and decides much.
        self._store(HEAD, head, heads, data, bits=8)
        embed = build_embed(self._source, geometry, static, masked)
        self._write(EMBED, embed, data, CPU_TARGET, copies=own_files)

    def _observed(self, layers: ir.Model, head: ir.Model, shown: Shown) -> tuple[float, Observed, Observed]:
        """What is added to masked scores, and what layers and head compute."""
        watched, last = Observer(layers), Observer(head)
        embed = open_plain(build_embed(self._source, self._manifest.geometry, self._static))
        for prompt in shown.prompts:
            for hidden in _run(self._manifest, self._static, embed, watched, prompt):
                for row in hidden:
                    last.run({"hidden": row[None, None]})
        for start in range(0, self._manifest.geometry.vocab_size, self._static.window):
            stop = min(start + self._static.window, self._manifest.geometry.vocab_size)
            rows = _embedded(self._manifest, embed, np.arange(start, stop), None, 0)["inputs_embeds"]
            watched.widen("inputs_embeds", float(rows.min()), float(rows.max()))
        for name in self._manifest.adapters:
            watched.widen(f"{GATE}{name}", 0.0, 1.0)
        margin = 1 + self._scheme.margin
        widest = max(high - low for name, (low, high) in watched.ranges.items() if _is_score(name))
        masked = -float(np.ceil(margin * widest + _MASK_MARGIN))
        watched.ranges["attention_mask"] = masked, 0.0
        for name, (low, high) in list(watched.ranges.items()):
            if _is_score(name):
                watched.ranges[name.replace(".scores.out", ".masked.out")] = low + masked, high
        return masked, watched.observed(), last.observed()

    def _encoder(self, name: str, data: DataFile, shown: Shown) -> None:
        spec = self._manifest.encoders[name]
        built = _ENCODERS.get(spec.kind)
        if built is None:
            raise ConfigError(
                f"the encoder {name!r} is of the kind {spec.kind!r}; the target {self._target} takes "
                f"{' and '.join(_ENCODERS)}"
            )
        model = ir.load(self._manifest.path(self._manifest.graphs[spec.graph].file))
        graph, encoder, feeds = built(self, spec, model)
        observed = Observed({})
        if self._profile.activations is not None:
            self._note(f"measuring the {name} encoder")
            watched = Observer(graph)
            for inputs in shown.encoded[name]:
                for taken in feeds(inputs):
                    watched.run(taken)
            observed = watched.observed()
        self._store(spec.graph, graph, observed, data)
        self._encoders[name] = encoder

    def _crops(self, spec: EncoderSpec, model: ir.Model) -> _Built:
        constants = read_dataclass(ImageConstants, _constants(spec.constants))
        graph = static_encoders.build_crop(model, constants, self._manifest.geometry.hidden_size)
        return graph, dataclasses.replace(spec, kind="phi4mm_crops"), phi4mm_crops.crops

    def _windows(self, spec: EncoderSpec, model: ir.Model) -> _Built:
        own = read_dataclass(AudioConstants, _constants(spec.constants))
        assert self._profile.static is not None
        tokens = self._options.audio_tokens or own.window_tokens
        if not 0 < tokens <= own.window_tokens:
            raise ConfigError(
                f"{tokens} tokens are no window of a recording; the model's own has {own.window_tokens}"
            )
        graph = static_encoders.build_window(model, own, tokens, self._manifest.geometry.hidden_size)
        constants = {**spec.constants, "tokens": tokens}
        encoder = dataclasses.replace(spec, kind="phi4mm_windows", constants=constants)

        def feeds(inputs: Mapping[str, Array]) -> Iterator[Mapping[str, Array]]:
            frames = inputs["audio_embeds"][0][: tokens * own.subsampling]
            whole = tokens == own.window_tokens
            return (one.inputs for one in windows(frames, tokens, own.subsampling, whole=whole))

        return graph, encoder, feeds

    @property
    def _scheme(self) -> WeightScheme:
        return WeightScheme(self._options.bits)

    def _store(
        self, name: str, model: ir.Model, observed: Observed, data: DataFile, bits: int | None = None
    ) -> None:
        """Quantizes a float32 graph as the target wants it, and writes it."""
        self._note(f"writing the {name} graph")
        for rules in self._profile.passes:
            model = rewritten(model, rules)
        scheme = dataclasses.replace(self._scheme, bits=bits or self._options.bits)
        if self._profile.activations is None:
            model = with_stored_weights(model, scheme)
        else:
            model = quantized(model, observed, scheme)
        self._write(name, model, data, self._target)

    def _write(self, name: str, model: ir.Model, data: DataFile, target: str, copies: bool = False) -> None:
        file = f"{self._target}_{name}.onnx"
        taken, given = describe(model.graph.inputs), describe(model.graph.outputs)
        files = store_graph(model, self._folder / file, data, copies=copies)
        self._graphs[name] = GraphSpec(file, files, target, taken, given)


_Feeds = Callable[[Mapping[str, Array]], Iterator[Mapping[str, Array]]]
_Built = tuple[ir.Model, EncoderSpec, _Feeds]
_ENCODERS: Mapping[str, Callable[[StaticVariant, EncoderSpec, ir.Model], _Built]] = {
    "phi4mm_image": StaticVariant._crops,
    "phi4mm_audio": StaticVariant._windows,
}


def _run(
    manifest: Manifest, static: StaticShapes, embed: Any, watched: Observer, prompt: Prompt
) -> Iterator[Array]:
    """Runs a prompt through the layers, a prefill after the other; the hidden states of each [n, width]."""
    geometry, size = manifest.geometry, static.prefill
    shape = (1, geometry.num_kv_heads, static.window, geometry.head_dim)
    past = {name: np.zeros(shape, np.float32) for name in layer_names(geometry.num_layers)}
    gates = {
        f"{GATE}{name}": np.array([name == prompt.adapter.name], np.float32) for name in manifest.adapters
    }
    none = np.zeros((0, geometry.hidden_size), np.float32)
    for start in range(0, len(prompt.ids), size):
        ids = prompt.ids[start : start + size]
        padded = np.full(size, manifest.tokens.pad, np.int64)
        padded[: len(ids)] = ids
        rows = feature_rows(prompt.spans, start, start + len(ids), none)
        feeds = _embedded(manifest, embed, padded, rows, start)
        feeds |= gates | {f"past_key_values.{name}": array for name, array in past.items()}
        made = watched.run(feeds)
        for name, array in past.items():
            array[:, :, start : start + len(ids)] = made[f"present.{name}"][:, :, : len(ids)]
        yield made["hidden"][0, : len(ids)]


def _embedded(
    manifest: Manifest, embed: Any, ids: Array, rows: Array | None, position: int
) -> dict[str, Array]:
    if rows is None:
        # Placeholders would ask for features.
        ids = np.where(np.isin(ids, manifest.placeholders), manifest.tokens.pad, ids)
        rows = np.zeros((0, manifest.geometry.hidden_size), np.float32)
    feeds = {"input_ids": ids[None], "media_features": rows, "position": np.array([position], np.int64)}
    return dict(zip(LAYER_INPUTS, embed.run(None, feeds), strict=True))


def _is_score(name: str) -> bool:
    return name.endswith(".scores.out")


def _constants(constants: Mapping[str, Any]) -> Fields:
    return Fields(dict(constants), "constants", ConfigError, "export the bundle again")
