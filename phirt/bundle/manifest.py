"""What a bundle says about itself: the frozen dataclasses that `manifest.json` is read into and written from.

Knows names, types, sizes, and which values of one part fit together. Relations between parts are `relations`'
matter, bytes are `document`'s, the listed files are `files`'. Knows nothing of onnxruntime, of arrays or of
what the graphs compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from phirt.fields import Length, Matching, Range

FORMAT = "phirt-bundle"
VERSION = 2
EMBEDDER_FORMAT = "phirt-embedder"
EMBEDDER_VERSION = 1
EMBEDDER = "embedder"  # the graph of an embedding model
MANIFEST_NAME = "manifest.json"
REMEDY = "export the bundle again or fetch a fresh copy"
CPU_TARGET = "cpu"  # of graphs that run on any CPU
SOME_ROWS = "rows_from_1"  # a size of media features that is 1 at least
NO_ADAPTER = "none"  # what the base weights alone are called where an adapter is named

Modality = Literal["image", "audio"]
Dtype = Literal["float32", "float16", "int64", "int32", "uint16", "uint8", "int8", "bool"]
Name = Annotated[str, Matching(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}", "a name of 1 to 200 characters")]
_Sha256 = Annotated[str, Matching("[0-9a-f]{64}", "64 lower-case hex digits")]
_Head = Annotated[int, Range(1, 1024)]
_Positions = Annotated[int, Range(1, 1 << 24)]
_TokenId = Annotated[int, Range(0, (1 << 22) - 1)]
_Factors = tuple[Annotated[float, Range(1e-6, 1e6)], ...]
_Shape = Annotated[tuple[Annotated[int, Range(0, 1 << 45)] | Name, ...], Length(0, 16)]


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size in bytes and lower-case hex sha256 of one file."""

    size: Annotated[int, Range(0, 1 << 45)]
    sha256: _Sha256


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: numpy dtype name and shape, where a string names a dynamic dimension."""

    name: Name
    dtype: Dtype
    shape: _Shape


_Tensors = Annotated[tuple[TensorSpec, ...], Length(0, 1 << 14)]


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph, the files with its external data, and its inputs and outputs."""

    file: str
    data: Annotated[tuple[str, ...], Length(0, 1024)]
    target: str
    inputs: _Tensors
    outputs: _Tensors


@dataclasses.dataclass(frozen=True)
class Rope:
    """Partial rotary embedding with LongRoPE factors, one a rotated pair."""

    theta: Annotated[float, Range(1.0, 1e12)]
    rotary_dim: Annotated[int, Range(2, 1024)]
    original_context: _Positions
    short_factor: _Factors
    long_factor: _Factors

    def __post_init__(self) -> None:
        pairs = self.rotary_dim // 2
        if self.rotary_dim % 2 or not len(self.short_factor) == len(self.long_factor) == pairs:
            raise ValueError(
                f"rotary_dim {self.rotary_dim} needs {pairs} short and long factors and must be even, there "
                f"are {len(self.short_factor)} and {len(self.long_factor)}"
            )


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of the decoder. `context` counts the positions that its graph can tell apart. `rope` is None for
    one whose graph knows its positions by itself.
    """

    num_layers: _Head
    num_heads: _Head
    num_kv_heads: _Head
    head_dim: _Head
    hidden_size: Annotated[int, Range(1, 1 << 17)]
    intermediate_size: Annotated[int, Range(1, 1 << 20)]
    vocab_size: Annotated[int, Range(2, 1 << 22)]
    context: _Positions
    rope: Rope | None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if self.rope is not None and self.rope.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim {self.rope.rotary_dim} is more than head_dim {self.head_dim}")

    @property
    def has_long_regime(self) -> bool:
        """Whether positions past `rope.original_context` use other rotary factors than the ones before."""
        return (
            self.rope is not None
            and self.context > self.rope.original_context
            and self.rope.short_factor != self.rope.long_factor
        )

    @property
    def original_context(self) -> int:
        """Positions before the long regime; all of them where there is no rotary embedding."""
        return self.context if self.rope is None else self.rope.original_context


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids that the runtime itself treats specially; an answer ends at any of `eos`."""

    bos: _TokenId
    pad: _TokenId
    eos: Annotated[tuple[_TokenId, ...], Length(1, 64)]


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """One encoder: what makes a graph's inputs of a picture or a recording.

    Attributes:
        kind: the module of `phirt.encoders` that prepares, counts and runs.
        modality: what it takes.
        graph: the graph that it runs.
        placeholder: the token id that stands for one row of its features in a prompt.
        projectors: names of what can project its features to the decoder's width. With more than one, the
            graph's input `projector` takes the number of the one to use, from 0.
        constants: numbers of its kind.
    """

    kind: Name
    modality: Modality
    graph: Name
    placeholder: _TokenId
    projectors: Annotated[tuple[Name, ...], Length(1, 16)]
    constants: Mapping[Name, Any]

    def __post_init__(self) -> None:
        if len(set(self.projectors)) != len(self.projectors):
            raise ValueError(f"projectors {', '.join(self.projectors)} are not all different")


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """One LoRA adapter of the decoder graph, whose input `route` takes its `id`; 0 is the base weights."""

    id: Annotated[int, Range(1, 255)]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a conversation with all of these modalities takes: an adapter, or none, and a projector for each
    encoder that has several. Rules stand in order; the first that fits is taken, and the last fits always.
    """

    modalities: Annotated[tuple[Modality, ...], Length(0, 8)]
    adapter: Name | None
    projectors: Mapping[Name, Name]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may cost at most: pixels of one image, seconds of one clip, bytes of one media file,
    positions of one conversation (None: as many as the geometry has). And seconds of speech that
    transcription joins to one request, where a recording has pauses (None: each utterance is a request).
    """

    image_pixels: Annotated[int, Range(1, 1 << 34)]
    audio_seconds: Annotated[float, Range(0.05, 86400.0)]
    media_bytes: Annotated[int, Range(1, 1 << 36)]
    context: _Positions | None = None
    transcribe_seconds: Annotated[float, Range(0.05, 86400.0)] | None = None


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """How answers are chosen where a request does not say: what the model's makers recommend. None: as phirt
    does without them.
    """

    temperature: Annotated[float, Range(0.0, 1000.0)] | None = None
    top_k: Annotated[int, Range(0, 1 << 22)] | None = None
    top_p: Annotated[float, Range(1e-9, 1.0)] | None = None
    min_p: Annotated[float, Range(0.0, 1.0)] | None = None
    repetition_penalty: Annotated[float, Range(0.01, 100.0)] | None = None


@dataclasses.dataclass(frozen=True)
class StaticShapes:
    """Sizes of graphs that take tensors of one size only: token ids of one run of a prefill, and positions
    that keys and values have room for.
    """

    prefill: Annotated[int, Range(1, 1 << 16)]
    window: _Positions


@dataclasses.dataclass(frozen=True)
class Variant:
    """The bundle's model as other graphs, for another kind of machine. All else stays as the manifest says.

    Attributes:
        providers: onnxruntime's names of those that they are made for.
        graphs: by the names of `Manifest.graphs`, or, with static shapes, by those of `phirt.bundle.static`.
            Those whose target is `cpu` run there beside the provider.
        encoders: those of `Manifest.encoders` that are of another kind here.
        static: set where the graphs are of one size.
        options: of the provider without which the graphs do not run, such as those of the chip that they were
            compiled for.
    """

    providers: Annotated[tuple[Name, ...], Length(1, 16)]
    graphs: Annotated[Mapping[Name, GraphSpec], Length(1, 64)]
    encoders: Annotated[Mapping[Name, EncoderSpec], Length(0, 16)] = dataclasses.field(default_factory=dict)
    static: StaticShapes | None = None
    options: Annotated[Mapping[Name, str], Length(0, 64)] = dataclasses.field(default_factory=dict)


class Contents(Protocol):
    """What every bundle has, whatever its model is for: graphs, and files by which they are checked."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """All files beside manifest.json."""

    @property
    def graphs(self) -> Mapping[str, GraphSpec]:
        """The graphs by what they are for."""

    @property
    def folder(self) -> Path:
        """Where the bundle lies."""

    @property
    def fingerprint(self) -> str:
        """The sha256 of manifest.json."""

    def path(self, name: str) -> Path:
        """Where the listed file `name` lies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedderManifest:
    """The manifest of an embedding model: one graph makes a vector of each text. `context` counts the tokens
    that it looks at, special ones included, and `pad` fills up shorter texts; `prompts` are what may stand
    before a text, by what the text is for.
    """

    name: str
    description: str = ""
    producer: str = ""
    files: Mapping[str, FileEntry]
    graphs: Annotated[Mapping[Name, GraphSpec], Length(1, 64)]
    tokenizer: str
    width: Annotated[int, Range(1, 1 << 17)]
    context: _Positions
    pad: _TokenId
    prompts: Annotated[Mapping[Name, str], Length(0, 64)] = dataclasses.field(default_factory=dict)
    quantization: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path
    fingerprint: str

    def path(self, name: str) -> Path:
        """Where the listed file `name` lies."""
        return self.folder / name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole manifest. `folder` is where it lies; `fingerprint` is the sha256 of manifest.json. Both are not
    part of the file, as are `variant` and `static`: the name of the one of `variants` whose graphs stand in
    `graphs`, once a provider is chosen, and its sizes. `graphs` of the file itself are for any provider that
    none of the variants is for; there are none where the bundle was made for those of its variants alone.
    `continues` are fingerprints of bundles that compute the same: conversations that were
    held with one of them go on with this one. `template_names` is what the chat template calls special
    tokens, such as `bos_token`; without it those of `tokens` have their names.
    """

    name: str
    description: str = ""
    producer: str = ""
    files: Mapping[str, FileEntry]
    graphs: Annotated[Mapping[Name, GraphSpec], Length(0, 64)]
    geometry: Geometry
    tokens: Tokens
    chat_template: str
    tokenizer: str
    encoders: Annotated[Mapping[Name, EncoderSpec], Length(0, 16)]
    adapters: Annotated[Mapping[Name, AdapterSpec], Length(0, 255)]
    rules: Annotated[tuple[Rule, ...], Length(1, 64)]
    limits: Limits
    quantization: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    continues: Annotated[tuple[_Sha256, ...], Length(0, 64)] = ()
    template_names: Annotated[Mapping[Name, str], Length(0, 64)] | None = None
    generation: GenerationDefaults | None = None
    variants: Annotated[Mapping[Name, Variant], Length(0, 32)] = dataclasses.field(default_factory=dict)
    folder: Path
    fingerprint: str
    variant: str | None = None
    static: StaticShapes | None = None

    def path(self, name: str) -> Path:
        """Where the listed file `name` lies."""
        return self.folder / name

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The token ids that stand for media."""
        return tuple(encoder.placeholder for encoder in self.encoders.values())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the bundle takes beside text."""
        return tuple(encoder.modality for encoder in self.encoders.values())
