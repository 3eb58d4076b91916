"""Phi-4-multimodal as it was published: names are the reference model's own.

Both adapters lie beside the base weights, and SigLIP's sizes are left to the original's code, so these are
read off the tensors.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.published.layout import Layout, Published
from phirt_export.published.phi4mm import (
    MAX_SECONDS,
    POOL,
    TOWER,
    VISION_EPS,
    WINDOW_TOKENS,
    idle_tensors,
    max_crops,
    multimodal_config,
    require_values,
)
from phirt_export.reference.config import AdapterConfig, AudioConfig, VisionConfig

IMAGE_TOKEN, AUDIO_TOKEN = "<|endoftext10|>", "<|endoftext11|>"
_VISION_HEAD_DIM = 72  # of SigLIP so400m, which the original's code fixes
_MAX_TOKENIZER_BYTES = 256 << 20


def read(published: Published) -> Layout:
    """The original layout: names are the reference model's own."""
    config = published.config
    vision = _vision_of_tensors(published)
    audio = _original_audio(config.child("audio_processor").child("config"))
    image_id, audio_id = _media_tokens(published.folder)
    adapters = {route: _original_adapter(config.child(f"{route}_lora")) for route in ("vision", "speech")}
    model = multimodal_config(published, vision, audio, (image_id, audio_id), adapters)
    return Layout(model, ignores=idle_tensors(model))


def _vision_of_tensors(published: Published) -> VisionConfig:
    """SigLIP's sizes from the shapes of its tensors; the last stored layer is not computed."""
    shapes, config = published.shapes, published.config

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = shapes.get(TOWER + name)
        if found is None or len(found) != axes:
            raise config.refusal(f"{TOWER}{name} is missing or has not {axes} axes")
        return found

    hidden, _, patch, _ = shape("embeddings.patch_embedding.weight", 4)
    positions, _ = shape("embeddings.position_embedding.weight", 2)
    inner, _ = shape("encoder.layers.0.mlp.fc1.weight", 2)
    layers = sum(
        bool(re.fullmatch(re.escape(TOWER) + r"encoder\.layers\.\d+\.layer_norm1\.weight", name))
        for name in shapes
    )
    image = config.child("embd_layer").child("image_embd_layer")
    if (order := image.text("hd_transform_order", "sub_glb")) != "sub_glb":
        raise image.refusal(f"'hd_transform_order' is {order[:80]!r}, accepted: 'sub_glb'")
    grid = math.isqrt(positions)
    if hidden % _VISION_HEAD_DIM or grid * grid != positions or layers < 2:
        raise config.refusal(
            f"an image encoder of width {hidden}, {positions} positions and {layers} layers cannot be built; "
            f"accepted: a multiple of {_VISION_HEAD_DIM}, a square, and two layers or more"
        )
    return VisionConfig(
        crop_size=image.integer("crop_size", 1, 4096),
        patch_size=patch,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers - 1,
        num_heads=hidden // _VISION_HEAD_DIM,
        norm_eps=VISION_EPS,
        max_crops=max_crops(published.folder),
        pool=POOL,
    )


def _original_audio(config: Fields) -> AudioConfig:
    hidden = config.integer("attention_dim", 1, 1 << 14)
    bias = config.child("relative_attention_bias_args")
    if bias.text("type", "t5") != "t5":
        raise bias.refusal("'type' must be 't5'")
    require_values(config, {"depthwise_seperable_out_channel": hidden, "ext_pw_out_channel": hidden})
    require_values(config, {"depthwise_multiplier": 1, "chunk_size": -1, "causal": True, "bias_in_glu": True})
    require_values(config.child("nemo_conv_settings"), {"conv_channels": hidden})
    return AudioConfig(
        num_mels=config.integer("input_size", 1, 512),
        hidden_size=hidden,
        intermediate_size=config.integer("linear_units", 1, 1 << 16),
        num_layers=config.integer("num_blocks", 1, 1024),
        num_heads=config.integer("attention_heads", 1, 1024),
        kernel_size=config.integer("kernel_size", 1, 64),
        bias_max_distance=bias.integer("t5_bias_max_distance", 1, 1 << 16),
        window_tokens=WINDOW_TOKENS,
        max_seconds=MAX_SECONDS,
        subsampling=config.integer("time_reduction", 1, 64),
    )


def _original_adapter(config: Fields) -> AdapterConfig:
    dropout = config.number("dp", 0.0, 1.0) if config.has("dp") else 0.0
    return AdapterConfig(config.integer("r", 1, 1 << 14), config.number("lora_alpha", 0.0, 1e6), dropout)


def _media_tokens(folder: Path) -> tuple[int, int]:
    """Ids of the media placeholders, which the original's code fixes and its tokenizer names."""
    path = folder / "tokenizer.json"
    remedy = f"fetch the checkpoint's own tokenizer.json, which names {IMAGE_TOKEN} and {AUDIO_TOKEN}"
    document = read_json(path, remedy, _MAX_TOKENIZER_BYTES)
    ids = {
        token.text("content"): token.integer("id", 0) for token in document.children("added_tokens", 1 << 16)
    }
    if lost := [token for token in (IMAGE_TOKEN, AUDIO_TOKEN) if token not in ids]:
        raise document.refusal(f"'added_tokens' lacks {' and '.join(lost)}")
    return ids[IMAGE_TOKEN], ids[AUDIO_TOKEN]
