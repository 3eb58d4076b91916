"""What a finished bundle says about itself: its manifest, written last, by the dataclasses that read it.

Knows files and checksums. Knows nothing of weights or nodes, nor of where a bundle grows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from phirt.bundle.document import manifest_bytes
from phirt.bundle.manifest import (
    MANIFEST_NAME,
    EmbedderManifest,
    FileEntry,
    GenerationDefaults,
    Geometry,
    GraphSpec,
    Limits,
    Manifest,
    Rope,
    TensorSpec,
    Tokens,
)
from phirt.errors import BundleError, ConfigError
from phirt.fields import Fields, read_dataclass, write_dataclass
from phirt.runtime.atomic_file import atomic_write
from phirt_export.chat_files import TEMPLATE_NAME, TOKENIZER_NAME
from phirt_export.encoders import EncoderPlan, adapter_specs, rules
from phirt_export.narrow import narrow
from phirt_export.reference import ModelConfig

# What goes along as it is: the card, and the terms under which weights may be passed on.
_TAKEN_ALONG = re.compile(r"(?ai)MODEL_CARD\.md|(LICEN[CS]E|NOTICE|COPYING)([._-][\w.-]*)?")
_MAX_DOCUMENT_BYTES = 1 << 20
_MAX_PIXELS, _MAX_SECONDS = 100_000_000, 1800.0  # where a model says nothing: what cameras make, half an hour
_LONG_CLIP = (
    300.0  # seconds; a model that was made for such clips understands a piece better with more around
)
_TRANSCRIBE_SECONDS = 30.0  # of one piece then: what models of Whisper's kind take
_MEDIA_BYTES = 1 << 28  # of one file, whatever its format
_NO_MEDIA = {"image_pixels": _MAX_PIXELS, "audio_seconds": _MAX_SECONDS}
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class LimitOptions:
    """What an export is asked to set: pixels of one image, seconds of one clip, positions of a conversation.
    None: the model's own.
    """

    image_pixels: int | None = None
    audio_seconds: float | None = None
    context: int | None = None


@dataclasses.dataclass(frozen=True)
class GraphFiles:
    """One finished graph of a bundle as the manifest lists it, and the digest of its data (hex sha256, taken
    as they were written).
    """

    spec: GraphSpec
    data_sha256: str


def producer() -> str:
    """Name and version written into graphs and manifests."""
    return f"phirt {importlib.metadata.version('phirt')}"


def describe(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Names, numpy dtypes and shapes of graph inputs or outputs."""
    described = []
    for value in values:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        dtype: Any = value.dtype.numpy().name  # checked with everything else when the manifest is written
        described.append(TensorSpec(value.name, dtype, shape))
    return tuple(described)


def write_manifest(
    folder: Path,
    config: ModelConfig,
    plans: Sequence[EncoderPlan],
    graphs: Mapping[str, GraphFiles],
    *,
    name: str,
    description: str,
    limits: Limits,
    quantization: Mapping[str, Any],
    template_names: Mapping[str, str] | None = None,
    generation: GenerationDefaults | None = None,
) -> None:
    """Write `manifest.json` over all other files of `folder`, which must be complete. It is there whole or
    not at all.

    Raises:
        ConfigError: the parts do not make a bundle that the runtime would load.
    """
    manifest = Manifest(
        name=name,
        description=description,
        producer=producer(),
        files=listed_files(folder, data_digests(graphs)),
        graphs={part: graph.spec for part, graph in graphs.items()},
        geometry=geometry(config),
        tokens=narrow(Tokens, config.tokens),
        chat_template=TEMPLATE_NAME,
        tokenizer=TOKENIZER_NAME,
        encoders={plan.name: plan.spec for plan in plans},
        adapters=adapter_specs(config, plans),
        rules=rules(config, plans),
        limits=limits,
        quantization=quantization,
        template_names=template_names,
        generation=generation,
        folder=folder,
        fingerprint="",
    )
    store_manifest(manifest)


def is_document(name: str) -> bool:
    """Whether a file is a model card, a licence or a notice, which go along wherever weights go."""
    return _TAKEN_ALONG.fullmatch(name) is not None


def copy_documents(checkpoint: Path, folder: Path) -> None:
    """Copies a checkpoint's model card, licences and notices to its bundle."""
    if not checkpoint.is_dir():  # one file, which is all there is
        return
    for path in checkpoint.iterdir():
        if is_document(path.name) and path.is_file() and path.stat().st_size <= _MAX_DOCUMENT_BYTES:
            shutil.copyfile(path, folder / path.name)


def data_digests(graphs: Mapping[str, GraphFiles]) -> dict[str, str | None]:
    """The sha256 of graphs' data files, as far as it is known from writing them."""
    return {name: graph.data_sha256 for graph in graphs.values() for name in graph.spec.data}


def listed_files(folder: Path, digests: Mapping[str, str | None]) -> dict[str, FileEntry]:
    """All files of a bundle but its manifest, as that lists them; those without a digest are read."""
    return {
        path.name: FileEntry(path.stat().st_size, digests.get(path.name) or _sha256(path))
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }


def store_manifest(manifest: Manifest | EmbedderManifest) -> None:
    """Write `manifest.json` into its folder, whole or not at all.

    Raises:
        ConfigError: the parts do not make a bundle that the runtime would load.
    """
    try:
        content = manifest_bytes(manifest)
    except BundleError as error:
        raise ConfigError(f"the checkpoint makes no bundle that would load: {error}") from error
    with atomic_write(manifest.folder / MANIFEST_NAME) as stream:
        stream.write(content)


def geometry(config: ModelConfig) -> Geometry:
    """The decoder's sizes as the manifest lists them."""
    rope = config.decoder.rope
    return narrow(Geometry, config.decoder, context=rope.context, rope=narrow(Rope, rope))


def model_limits(config: ModelConfig, options: LimitOptions = LimitOptions()) -> Limits:
    """What a request may cost: as the options say, else as the model is made for.

    Raises:
        ConfigError: a limit is none, or a context is longer than the model's.
    """
    vision, audio = config.vision or config.photo, config.audio or config.whisper
    context = config.decoder.rope.context
    longest = _MAX_SECONDS if audio is None else audio.max_seconds
    own = {
        "image_pixels": _MAX_PIXELS if vision is None else vision.max_pixels,
        "audio_seconds": longest,
        "transcribe_seconds": _TRANSCRIBE_SECONDS if longest >= _LONG_CLIP else None,
    }
    return limits_within(context, options, own)


def limits_within(context: int, options: LimitOptions, own: Mapping[str, object] = _NO_MEDIA) -> Limits:
    """What a request may cost: as the options say, else `own`, for a model of `context` positions.

    Raises:
        ConfigError: a limit is none, or a context is longer than the model's.
    """
    asked = {name: value for name, value in write_dataclass(options).items() if value is not None}
    everything = {"media_bytes": _MEDIA_BYTES, **own, **asked}
    fields = Fields(everything, "limits", ConfigError, f"the model's context has {context} positions")
    found = read_dataclass(Limits, fields)
    if found.context is not None and found.context > context:
        raise fields.refusal(f"context {found.context} is too long")
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
