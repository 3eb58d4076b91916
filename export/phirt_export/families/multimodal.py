"""Phi-4-multimodal in its two published layouts: the original (`phi4mm`) and that of transformers
(`phi4_multimodal`).

Knows their configurations, their names (spec section D) and the adapters' files. The original keeps both
adapters beside the base weights and leaves SigLIP's sizes to its code, so these are read off the tensors.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.families.layout import Layout, Part, Published
from phirt_export.families.text import flag, fused_parts, is_idle, read_decoder, read_tokens
from phirt_export.reference.config import AdapterConfig, AudioConfig, ModelConfig, VisionConfig

IMAGE_TOKEN, AUDIO_TOKEN = "<|endoftext10|>", "<|endoftext11|>"
_TOWER = "model.embed_tokens_extend.image_embed.img_processor."
# Behind the layer whose output is taken; never computed.
_IDLE_TOWER = ("post_layernorm.", "head.")
# Of SigLIP so400m, which the original's code fixes (spec section B).
_VISION_HEAD_DIM, _VISION_EPS, _POOL = 72, 1e-6, 2
_WINDOW_TOKENS = 500  # likewise for the audio encoder (spec section C)
_MAX_CROPS = 36
_MAX_TOKENIZER_BYTES = 256 << 20
# What transformers leaves out of a part's configuration where it equals its class's own value.
_VISION_DEFAULTS = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "crop_size": 448, "patch_size": 14, "image_token_id": 200010,
}  # fmt: skip
_AUDIO_DEFAULTS = {
    "hidden_size": 1024, "intermediate_size": 1536, "num_blocks": 24, "num_attention_heads": 16,
    "kernel_size": 3, "input_size": 80, "time_reduction": 8, "bias_max_distance": 1000,
    "audio_token_id": 200011,
}  # fmt: skip
_RENAMES = (
    (r"\.(feed_forward_(?:in|out))\.net\.0\.linear\.", r".\1.gate_up_proj."),
    (r"\.(feed_forward_(?:in|out))\.net\.2\.", r".\1.down_proj."),
    (r"\.self_attn\.linear_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.self_attn\.linear_out\.", ".self_attn.o_proj."),
    (r"\.img_projection\.0\.", ".img_projection_up."),
    (r"\.img_projection\.2\.", ".img_projection_down."),
    (r"\.glb_GN$", ".global_img_feature_extensor"),
    (r"\.sub_GN$", ".sub_img_feature_extensor"),
    (r"\.audio_projection\.speech\.0\.", ".up_proj_for_speech."),
    (r"\.audio_projection\.speech\.2\.", ".down_proj_for_speech."),
    (r"\.audio_projection\.vision\.0\.", ".up_proj_for_vision_speech."),
    (r"\.audio_projection\.vision\.2\.", ".down_proj_for_vision_speech."),
)
_LORA = re.compile(r"^(.*\.lora_[AB])\.(vision|speech)\.weight$")


def read_original(published: Published) -> Layout:
    """The original layout: names are the reference model's own."""
    config = published.config
    vision = _vision_of_tensors(published)
    audio = _original_audio(config.child("audio_processor").child("config"))
    image_id, audio_id = _media_tokens(published.folder)
    adapters = {route: _original_adapter(config.child(f"{route}_lora")) for route in ("vision", "speech")}
    model = _model(published, vision, audio, (image_id, audio_id), adapters)
    return Layout("phi4mm", model, ignores=_ignores(model))


def read_native(published: Published) -> Layout:
    """The layout of transformers: other names, adapters in `vision-lora/` and `speech-lora/`."""
    config = published.config
    vision = config.child("vision_config") if config.has("vision_config") else None
    audio = config.child("audio_config") if config.has("audio_config") else None
    sizes, audio_sizes = _Sizes(vision, _VISION_DEFAULTS), _Sizes(audio, _AUDIO_DEFAULTS)
    files = {f"{route}-lora": published.folder / f"{route}-lora" for route in ("vision", "speech")}
    if lost := [name for name, path in files.items() if not path.is_dir()]:
        raise ConfigError(
            f"{published.folder} lacks {', '.join(lost)}; this layout keeps its adapters there, fetch them"
        )
    model = _model(
        published,
        _native_vision(sizes, published.folder),
        _native_audio(audio_sizes),
        (sizes.integer("image_token_id", 1 << 22), audio_sizes.integer("audio_token_id", 1 << 22)),
        {route: _adapter(files[f"{route}-lora"]) for route in ("vision", "speech")},
    )
    weights = {name: path / "adapter_model.safetensors" for name, path in files.items()}
    return Layout("phi4_multimodal", model, _native_parts, _ignores(model), weights)


def _model(
    published: Published,
    vision: VisionConfig,
    audio: AudioConfig,
    media: tuple[int, int],
    adapters: dict[str, AdapterConfig],
) -> ModelConfig:
    window = published.config.optional_integer("sliding_window", 1)
    decoder = read_decoder(published, window=window)
    if max(media) >= decoder.vocab_size or media[0] == media[1]:
        raise published.config.refusal(
            f"the media placeholders {media[0]} and {media[1]} must be two ids of the vocabulary of "
            f"{decoder.vocab_size}"
        )
    tokens = read_tokens(published, decoder.vocab_size, *media)
    return ModelConfig(decoder=decoder, tokens=tokens, vision=vision, audio=audio, adapters=adapters)


def _ignores(model: ModelConfig) -> Any:
    assert model.vision is not None
    last = f"{_TOWER}encoder.layers.{model.vision.num_layers}."
    idle = (last, *(_TOWER + part for part in _IDLE_TOWER))
    decoder_idle = is_idle(model.decoder)
    return lambda name: name.startswith(idle) or decoder_idle(name)


def _native_parts(name: str) -> tuple[Part, ...]:
    if found := _LORA.match(name):
        return (Part(f"{found[2]}-lora/base_model.model.{found[1]}.weight"),)
    if name.startswith("model.embed_tokens_extend."):
        for pattern, replacement in _RENAMES:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        return (Part(name),)
    return fused_parts(name)


def _vision_of_tensors(published: Published) -> VisionConfig:
    """SigLIP's sizes from the shapes of its tensors; the last stored layer is not computed."""
    shapes, config = published.shapes, published.config

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = shapes.get(_TOWER + name)
        if found is None or len(found) != axes:
            raise config.refusal(f"{_TOWER}{name} is missing or has not {axes} axes")
        return found

    hidden, _, patch, _ = shape("embeddings.patch_embedding.weight", 4)
    positions, _ = shape("embeddings.position_embedding.weight", 2)
    inner, _ = shape("encoder.layers.0.mlp.fc1.weight", 2)
    layers = sum(
        bool(re.fullmatch(re.escape(_TOWER) + r"encoder\.layers\.\d+\.layer_norm1\.weight", name))
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
        norm_eps=_VISION_EPS,
        max_crops=_max_crops(published.folder),
        pool=_POOL,
    )


def _original_audio(config: Fields) -> AudioConfig:
    hidden = config.integer("attention_dim", 1, 1 << 14)
    bias = config.child("relative_attention_bias_args")
    if bias.text("type", "t5") != "t5":
        raise bias.refusal("'type' must be 't5'")
    _require(config, {"depthwise_seperable_out_channel": hidden, "ext_pw_out_channel": hidden})
    _require(config, {"depthwise_multiplier": 1, "chunk_size": -1, "causal": True, "bias_in_glu": True})
    _require(config.child("nemo_conv_settings"), {"conv_channels": hidden})
    return AudioConfig(
        num_mels=config.integer("input_size", 1, 512),
        hidden_size=hidden,
        intermediate_size=config.integer("linear_units", 1, 1 << 16),
        num_layers=config.integer("num_blocks", 1, 1024),
        num_heads=config.integer("attention_heads", 1, 1024),
        kernel_size=config.integer("kernel_size", 1, 64),
        bias_max_distance=bias.integer("t5_bias_max_distance", 1, 1 << 16),
        window_tokens=_WINDOW_TOKENS,
        subsampling=config.integer("time_reduction", 1, 64),
    )


def _require(config: Fields, values: dict[str, int | bool]) -> None:
    """Values that the encoder here is built for; another one would mean another arithmetic."""
    for key, value in values.items():
        if config.has(key) and config.raw(key) != value:
            raise config.refusal(f"{key!r} is {config.raw(key)!r:.80}, accepted: {value!r}")


class _Sizes:
    """Numbers of a part's configuration, with the values that transformers leaves out."""

    def __init__(self, config: Fields | None, defaults: dict[str, int]) -> None:
        self.config, self._defaults = config, defaults

    def integer(self, key: str, high: int) -> int:
        """A positive size."""
        if self.config is None or not self.config.has(key):
            return self._defaults[key]
        return self.config.integer(key, 1, high)


def _native_vision(sizes: _Sizes, folder: Path) -> VisionConfig:
    if sizes.config is not None:
        _require(sizes.config, {"feature_layer": -2, "num_channels": 3})
    return VisionConfig(
        crop_size=sizes.integer("crop_size", 4096),
        patch_size=sizes.integer("patch_size", 4096),
        hidden_size=sizes.integer("hidden_size", 1 << 14),
        intermediate_size=sizes.integer("intermediate_size", 1 << 16),
        num_layers=max(1, sizes.integer("num_hidden_layers", 1024) - 1),
        num_heads=sizes.integer("num_attention_heads", 1024),
        norm_eps=_VISION_EPS,
        max_crops=_max_crops(folder),
        pool=_POOL,
    )


def _native_audio(sizes: _Sizes) -> AudioConfig:
    hidden = sizes.integer("hidden_size", 1 << 14)
    if sizes.config is not None:
        same = ("ext_pw_out_channel", "depthwise_separable_out_channel", "nemo_conv_channels")
        _require(sizes.config, {key: hidden for key in same})
        _require(
            sizes.config,
            {"depthwise_multiplier": 1, "chunk_size": -1, "bias_symmetric": False, "downsample_rate": 1},
        )
    return AudioConfig(
        num_mels=sizes.integer("input_size", 512),
        hidden_size=hidden,
        intermediate_size=sizes.integer("intermediate_size", 1 << 16),
        num_layers=sizes.integer("num_blocks", 1024),
        num_heads=sizes.integer("num_attention_heads", 1024),
        kernel_size=sizes.integer("kernel_size", 64),
        bias_max_distance=sizes.integer("bias_max_distance", 1 << 16),
        window_tokens=_WINDOW_TOKENS,
        subsampling=sizes.integer("time_reduction", 64),
    )


def _original_adapter(config: Fields) -> AdapterConfig:
    dropout = config.number("dp", 0.0, 1.0) if config.has("dp") else 0.0
    return AdapterConfig(config.integer("r", 1, 1 << 14), config.number("lora_alpha", 0.0, 1e6), dropout)


def _adapter(folder: Path) -> AdapterConfig:
    """An adapter_config.json of PEFT: plain LoRA, one rank for all projections."""
    config = read_json(folder / "adapter_config.json", "fetch the adapter again")
    for key in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"):
        if flag(config, key):
            raise config.refusal(f"{key!r} is true, accepted: plain LoRA")
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.raw(key):
            raise config.refusal(f"{key!r} is set, accepted: one rank and one alpha for all projections")
    if config.text("bias", "none") != "none":
        raise config.refusal("'bias' is set, accepted: 'none'")
    dropout = config.number("lora_dropout", 0.0, 1.0) if config.has("lora_dropout") else 0.0
    return AdapterConfig(config.integer("r", 1, 1 << 14), config.number("lora_alpha", 0.0, 1e6), dropout)


def _max_crops(folder: Path) -> int:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return _MAX_CROPS
    config = read_json(path, "fetch the checkpoint's own preprocessor_config.json")
    return config.integer("dynamic_hd", 1, 256) if config.has("dynamic_hd") else _MAX_CROPS


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
