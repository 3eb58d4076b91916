"""The bundle's contract: `manifest.json` read into frozen dataclasses and validated once.

Knows names, types, sizes and checksums of a bundle's files, and opens none of them (`bundle_files` does).
Knows nothing of onnxruntime, of arrays or of what the graphs compute. Keys that version 1 does not define are
ignored, so that a producer may add notes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from phirt.errors import BundleError
from phirt.fields import Fields, Length, Range, parse_json

FORMAT = "phirt-bundle"
ACCEPTED_VERSIONS = (1,)
MANIFEST_NAME = "manifest.json"
REMEDY = "export the bundle again or fetch a fresh copy"
DTYPES = ("float32", "float16", "int64", "int32", "uint8", "int8", "bool")

_MAX_NAME = 200  # of a file, in characters

_Shape = Annotated[tuple[Annotated[int, Range(0, 1 << 45)] | str, ...], Length(0, 16)]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size in bytes and lower-case hex sha256 of one file."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: numpy dtype name and shape, where a string names a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph, the files with its external data, and its inputs and outputs."""

    file: str
    data: tuple[str, ...]
    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclasses.dataclass(frozen=True)
class Rope:
    """Partial rotary embedding with LongRoPE factors, one a rotated pair."""

    theta: float
    rotary_dim: int
    original_context: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of the decoder. `context` counts positions."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context: int
    rope: Rope

    @property
    def has_long_regime(self) -> bool:
        """Whether positions past `rope.original_context` use other rotary factors than the ones before."""
        return self.context > self.rope.original_context and self.rope.short_factor != self.rope.long_factor


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids that the runtime itself treats specially. `image` and `audio` are the media placeholders."""

    bos: int
    pad: int
    eos: tuple[int, ...]
    image: int | None
    audio: int | None

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The media placeholders that there are."""
        return tuple(token for token in (self.image, self.audio) if token is not None)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Constants of the image processor, in pixels (`crop_size`, `patch_size`, `min_side`) and patches
    (`pool`).
    """

    crop_size: int
    patch_size: int
    pool: int
    max_crops: int
    min_side: int

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class AudioSpec:
    """Constants of the audio processor: `sample_rate` in Hz; `subsampling` frames make one token."""

    sample_rate: int
    num_mels: int
    subsampling: int
    window_tokens: int


@dataclasses.dataclass(frozen=True)
class RouteSpec:
    """What the decoder is told (`id`), the adapter that activates, the projector audio takes beside it."""

    id: int
    adapter: str | None
    audio_projector: str | None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may cost at most: pixels of one image, seconds of one clip, bytes of one media file."""

    image_pixels: int
    audio_seconds: float
    media_bytes: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A validated manifest. `folder` is where it lies; `fingerprint` is the sha256 of manifest.json."""

    name: str
    description: str
    producer: str
    files: Mapping[str, FileEntry]
    graphs: Mapping[str, GraphSpec]
    geometry: Geometry
    tokens: Tokens
    chat_template: str
    tokenizer: str
    image: ImageSpec | None
    audio: AudioSpec | None
    routes: Mapping[str, RouteSpec]
    limits: Limits
    quantization: Mapping[str, Any]
    folder: Path
    fingerprint: str

    def path(self, name: str) -> Path:
        """Where the listed file `name` lies."""
        return self.folder / name


def parse_manifest(raw: bytes, folder: Path) -> Manifest:
    """Validates the bytes of a manifest without looking at the files it lists. Raises BundleError."""
    root = Fields(
        parse_json(raw, str(folder / MANIFEST_NAME), BundleError, REMEDY),
        MANIFEST_NAME,
        BundleError,
        REMEDY,
    )
    if root.raw("format") != FORMAT:
        raise BundleError(
            f"{MANIFEST_NAME}: format is {root.raw('format')!r}, accepted: {FORMAT!r}; name a folder made by "
            "'phirt export'"
        )
    version = root.raw("version")
    if isinstance(version, bool) or version not in ACCEPTED_VERSIONS:
        accepted = ", ".join(map(str, ACCEPTED_VERSIONS))
        raise BundleError(
            f"{MANIFEST_NAME}: version {version!r} is not known, accepted: {accepted}; "
            "update phirt or export the bundle again"
        )
    quantization = root.raw("quantization")
    if not isinstance(quantization, dict | None):
        raise root.refusal("'quantization' must be an object or null")
    geometry = _geometry(root.child("geometry"))
    manifest = Manifest(
        name=root.text("name"),
        description=root.text("description", ""),
        producer=root.text("producer", ""),
        files={name: _file_entry(entry) for name, entry in root.mapping("files").items()},
        graphs={name: _graph(entry) for name, entry in root.mapping("graphs").items()},
        geometry=geometry,
        tokens=_tokens(root.child("tokens"), geometry.vocab_size),
        chat_template=root.text("chat_template"),
        tokenizer=root.text("tokenizer"),
        image=_optional(root, "image", _image),
        audio=_optional(root, "audio", _audio),
        routes={name: _route(entry) for name, entry in root.mapping("routes").items()},
        limits=_limits(root.child("limits")),
        quantization=quantization or {},
        folder=folder,
        fingerprint=hashlib.sha256(raw).hexdigest(),
    )
    _check_consistency(manifest)
    return manifest


def _check_name(name: str) -> None:
    """A plain relative path: forward slashes, no empty, '.' or '..' part, no drive, no control character."""
    parts = name.split("/")
    odd = any(c in "\\:" or ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name)
    if odd or any(part in ("", ".", "..") or len(part) > _MAX_NAME for part in parts):
        raise BundleError(
            f"{MANIFEST_NAME}: file name {name!r} leaves the bundle or is not plain; accepted: relative "
            "names inside "
            f"the bundle; {REMEDY}"
        )


def _optional(root: Fields, key: str, read: Callable[[Fields], _T]) -> _T | None:
    return read(root.child(key)) if root.has(key) else None


def _file_entry(fields: Fields) -> FileEntry:
    sha256 = fields.text("sha256")
    if len(sha256) != 64 or any(c not in "0123456789abcdef" for c in sha256):
        raise fields.refusal(f"'sha256' is {sha256[:80]!r}, expected 64 lower-case hex digits")
    return FileEntry(size=fields.integer("size", 0, 1 << 45), sha256=sha256)


def _graph(fields: Fields) -> GraphSpec:
    return GraphSpec(
        file=fields.text("file"),
        data=fields.texts("data"),
        target=fields.text("target"),
        inputs=tuple(map(_tensor, fields.children("inputs", 1 << 14))),
        outputs=tuple(map(_tensor, fields.children("outputs", 1 << 14))),
    )


def _tensor(fields: Fields) -> TensorSpec:
    dtype = fields.text("dtype")
    if dtype not in DTYPES:
        raise fields.refusal(f"'dtype' is {dtype!r}, accepted: {', '.join(DTYPES)}")
    return TensorSpec(fields.text("name"), dtype, fields.read("shape", _Shape))


def _geometry(fields: Fields) -> Geometry:
    rope = fields.child("rope")
    geometry = Geometry(
        num_layers=fields.integer("num_layers", 1, 1024),
        num_heads=fields.integer("num_heads", 1, 1024),
        num_kv_heads=fields.integer("num_kv_heads", 1, 1024),
        head_dim=fields.integer("head_dim", 1, 1024),
        hidden_size=fields.integer("hidden_size", 1, 1 << 17),
        intermediate_size=fields.integer("intermediate_size", 1, 1 << 20),
        vocab_size=fields.integer("vocab_size", 2, 1 << 22),
        context=fields.integer("context", 1),
        rope=Rope(
            theta=rope.number("theta", 1.0, 1e12),
            rotary_dim=rope.integer("rotary_dim", 2, 1024),
            original_context=rope.integer("original_context", 1),
            short_factor=rope.numbers("short_factor", 1e-6, 1e6),
            long_factor=rope.numbers("long_factor", 1e-6, 1e6),
        ),
    )
    pairs = geometry.rope.rotary_dim // 2
    if not len(geometry.rope.short_factor) == len(geometry.rope.long_factor) == pairs:
        raise rope.refusal(f"rotary_dim {geometry.rope.rotary_dim} needs {pairs} short and long factors")
    if geometry.num_heads % geometry.num_kv_heads:
        raise fields.refusal(
            f"num_heads {geometry.num_heads} is no multiple of num_kv_heads {geometry.num_kv_heads}"
        )
    return geometry


def _tokens(fields: Fields, vocab_size: int) -> Tokens:
    top = vocab_size - 1
    return Tokens(
        bos=fields.integer("bos", 0, top),
        pad=fields.integer("pad", 0, top),
        eos=fields.integers("eos", 0, top),
        image=fields.optional_integer("image", 0, top),
        audio=fields.optional_integer("audio", 0, top),
    )


def _image(fields: Fields) -> ImageSpec:
    spec = ImageSpec(
        crop_size=fields.integer("crop_size", 1, 4096),
        patch_size=fields.integer("patch_size", 1, 4096),
        pool=fields.integer("pool", 1, 64),
        max_crops=fields.integer("max_crops", 1, 256),
        min_side=fields.integer("min_side", 1, 4096),
    )
    if spec.crop_size % (spec.patch_size * spec.pool):
        raise fields.refusal(f"crop_size {spec.crop_size} is no multiple of patch_size x pool")
    return spec


def _audio(fields: Fields) -> AudioSpec:
    return AudioSpec(
        sample_rate=fields.integer("sample_rate", 16000, 16000),  # the log-mel formula is tied to this rate
        num_mels=fields.integer("num_mels", 1, 512),
        subsampling=fields.integer("subsampling", 1, 64),
        window_tokens=fields.integer("window_tokens", 1, 1 << 16),
    )


def _route(fields: Fields) -> RouteSpec:
    return RouteSpec(
        fields.integer("id", 0, 255), fields.optional_text("adapter"), fields.optional_text("audio_projector")
    )


def _limits(fields: Fields) -> Limits:
    return Limits(
        image_pixels=fields.integer("image_pixels", 1, 1 << 34),
        audio_seconds=fields.number("audio_seconds", 0.05, 86400.0),
        media_bytes=fields.integer("media_bytes", 1, 1 << 36),
    )


def _check_consistency(manifest: Manifest) -> None:
    """Relations between the parts: listed files, wanted graphs, routes for the modalities that the bundle
    has.
    """

    def refuse(cause: str) -> BundleError:
        return BundleError(f"{MANIFEST_NAME}: {cause}; {REMEDY}")

    for name in manifest.files:
        _check_name(name)
    wanted = [manifest.chat_template, manifest.tokenizer]
    for graph in manifest.graphs.values():
        wanted += [graph.file, *graph.data]
    for name in wanted:
        if name not in manifest.files:
            raise refuse(f"{name!r} is used but not listed in 'files'")
    if "decoder" not in manifest.graphs:
        raise refuse("'graphs' has no 'decoder'")
    if "none" not in manifest.routes:
        raise refuse("'routes' has no 'none'")
    if (manifest.image is None) != ("vision" not in manifest.graphs):
        raise refuse("'image' and the graph 'vision' must come together")
    if (manifest.audio is None) != ("speech" not in manifest.graphs):
        raise refuse("'audio' and the graph 'speech' must come together")
    if manifest.image is not None and manifest.tokens.image is None:
        raise refuse("'tokens' has no 'image' placeholder though the bundle has a vision graph")
    if manifest.audio is not None and manifest.tokens.audio is None:
        raise refuse("'tokens' has no 'audio' placeholder though the bundle has a speech graph")
    ids = [route.id for route in manifest.routes.values()]
    if len(set(ids)) != len(ids):
        raise refuse(f"'routes' share an id: {sorted(ids)}")
