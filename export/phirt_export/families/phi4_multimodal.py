"""Phi-4-multimodal in the layout of transformers: other names, adapters in `vision-lora/`, `speech-lora/`."""

from __future__ import annotations

import re
from pathlib import Path

from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.published.decoder import flag, fused_parts
from phirt_export.published.layout import Layout, Part, Published
from phirt_export.published.phi4mm import (
    MAX_SECONDS,
    POOL,
    VISION_EPS,
    WINDOW_TOKENS,
    idle_tensors,
    max_crops,
    multimodal_config,
    require_values,
)
from phirt_export.reference.config import AdapterConfig, AudioConfig, VisionConfig

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


def read(published: Published) -> Layout:
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
    model = multimodal_config(
        published,
        _native_vision(sizes, published.folder),
        _native_audio(audio_sizes),
        (sizes.integer("image_token_id", 1 << 22), audio_sizes.integer("audio_token_id", 1 << 22)),
        {route: _adapter(files[f"{route}-lora"]) for route in ("vision", "speech")},
    )
    weights = {name: path / "adapter_model.safetensors" for name, path in files.items()}
    return Layout(model, _native_parts, idle_tensors(model), weights)


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
        require_values(sizes.config, {"feature_layer": -2, "num_channels": 3})
    return VisionConfig(
        crop_size=sizes.integer("crop_size", 4096),
        patch_size=sizes.integer("patch_size", 4096),
        hidden_size=sizes.integer("hidden_size", 1 << 14),
        intermediate_size=sizes.integer("intermediate_size", 1 << 16),
        num_layers=max(1, sizes.integer("num_hidden_layers", 1024) - 1),
        num_heads=sizes.integer("num_attention_heads", 1024),
        norm_eps=VISION_EPS,
        max_crops=max_crops(folder),
        pool=POOL,
    )


def _native_audio(sizes: _Sizes) -> AudioConfig:
    hidden = sizes.integer("hidden_size", 1 << 14)
    if sizes.config is not None:
        same = ("ext_pw_out_channel", "depthwise_separable_out_channel", "nemo_conv_channels")
        require_values(sizes.config, {key: hidden for key in same})
        require_values(
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
        window_tokens=WINDOW_TOKENS,
        max_seconds=MAX_SECONDS,
        subsampling=sizes.integer("time_reduction", 64),
    )


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
