"""What a finished bundle says about itself: its manifest, written last.

Knows files, checksums and the manifest's keys. Knows nothing of weights or nodes, nor of where a bundle
grows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from phirt.bundle.manifest import FORMAT, MANIFEST_NAME
from phirt_export.chat_files import TEMPLATE_NAME, TOKENIZER_NAME
from phirt_export.graphs.lora import NO_ADAPTER, ROUTE_IDS
from phirt_export.reference import ModelConfig

VERSION = 1
CARD_NAME = "MODEL_CARD.md"
_DRAFT_NAME = f"{MANIFEST_NAME}.draft"
# What a request may cost at most; not part of a checkpoint.
LIMITS: dict[str, Any] = {"image_pixels": 100_000_000, "audio_seconds": 60.0, "media_bytes": 268_435_456}
_MIN_IMAGE_SIDE = 10
_SAMPLE_RATE = 16_000
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class GraphFiles:
    """One finished graph of a bundle: names of its files, the digest of its data (hex sha256, taken as they
    were written), and its inputs and outputs as the manifest lists them.
    """

    file: str
    data: str
    data_sha256: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def entry(self, target: str) -> dict[str, Any]:
        """The manifest's entry."""
        return {
            "file": self.file,
            "data": [self.data],
            "target": target,
            "inputs": self.inputs,
            "outputs": self.outputs,
        }


def producer() -> str:
    """Name and version written into graphs and manifests."""
    return f"phirt {importlib.metadata.version('phirt')}"


def describe(values: Sequence[ir.Value]) -> list[dict[str, Any]]:
    """Names, numpy dtypes and shapes of graph inputs or outputs."""
    described = []
    for value in values:
        assert value.dtype is not None and value.shape is not None
        shape = [d if isinstance(d, int) else str(d.value) for d in value.shape]
        described.append({"name": value.name, "dtype": value.dtype.numpy().name, "shape": shape})
    return described


def write_manifest(
    folder: Path,
    config: ModelConfig,
    graphs: Mapping[str, GraphFiles],
    *,
    name: str,
    description: str,
    target: str,
    quantization: Mapping[str, Any],
) -> None:
    """Write `manifest.json` over all other files of `folder`, which must be complete. It is there whole or
    not at all.
    """
    digests = {graph.data: graph.data_sha256 for graph in graphs.values()}
    files = {
        path.name: {"size": path.stat().st_size, "sha256": digests.get(path.name) or _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name not in (MANIFEST_NAME, _DRAFT_NAME)
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "description": description,
        "producer": producer(),
        "files": files,
        "graphs": {part: graph.entry(target) for part, graph in graphs.items()},
        "geometry": _geometry(config),
        "tokens": {**dataclasses.asdict(config.tokens), "eos": list(config.tokens.eos)},
        "chat_template": TEMPLATE_NAME,
        "tokenizer": TOKENIZER_NAME,
        "image": image_constants(config),
        "audio": audio_constants(config),
        "routes": routes(config),
        "limits": LIMITS,
        "quantization": dict(quantization),
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    draft = folder / _DRAFT_NAME
    draft.write_text(text, encoding="utf-8")
    draft.replace(folder / MANIFEST_NAME)


def routes(config: ModelConfig) -> dict[str, Any]:
    """The routes this model can take (spec section D); a route needs its encoder or its adapter."""
    table: dict[str, Any] = {"none": {"id": NO_ADAPTER, "adapter": None, "audio_projector": None}}
    towers = {"vision": config.vision, "speech": config.audio}
    for route, route_id in ROUTE_IDS.items():
        if towers[route] or route in config.adapters:
            adapter = route if route in config.adapters else None
            table[route] = {
                "id": route_id,
                "adapter": adapter,
                "audio_projector": route if config.audio else None,
            }
    return table


def _geometry(config: ModelConfig) -> dict[str, Any]:
    decoder = config.decoder
    names = (
        "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "intermediate_size",
        "vocab_size",
    )  # fmt: skip
    rope = decoder.rope
    return {
        **{name: getattr(decoder, name) for name in names},
        "context": rope.context,
        "rope": {
            "theta": rope.theta,
            "rotary_dim": rope.rotary_dim,
            "original_context": rope.original_context,
            "short_factor": list(rope.short_factor),
            "long_factor": list(rope.long_factor),
        },
    }


def image_constants(config: ModelConfig) -> dict[str, Any] | None:
    """Constants of the image processor, as the manifest lists them; None for a model without eyes."""
    vision = config.vision
    if vision is None:
        return None
    return {
        "crop_size": vision.crop_size,
        "patch_size": vision.patch_size,
        "pool": vision.pool,
        "max_crops": vision.max_crops,
        "min_side": _MIN_IMAGE_SIDE,
    }


def audio_constants(config: ModelConfig) -> dict[str, Any] | None:
    """Constants of the audio processor, as the manifest lists them; None for a model without ears."""
    audio = config.audio
    if audio is None:
        return None
    return {
        "sample_rate": _SAMPLE_RATE,
        "num_mels": audio.num_mels,
        "subsampling": audio.subsampling,
        "window_tokens": audio.window_tokens,
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
