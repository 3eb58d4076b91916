"""Configurations and tensor names of Phi-4-multimodal: the original layout, and transformers' renamed one."""

from __future__ import annotations

import re
from typing import Any

from .text import PHI4_DECODER, SMALL_PHI4_DECODER, Config, Shapes, projections

ROUTES = ("vision", "speech")
_EXTEND = "model.embed_tokens_extend."
_HEAD_DIM = 72


def original(decoder: Config, vision: Config, audio: Config, ranks: dict[str, int]) -> Config:
    """config.json of the original layout, with the sizes of the image encoder under a key of its own that is
    taken out before writing: the original keeps them in its code.
    """
    width = audio["attention_dim"]
    encoder = {
        **audio, "activation": "swish", "batch_norm": False, "bias_in_glu": True, "causal": True,
        "chunk_size": -1, "cnn_layer_norm": True, "conv_activation": "swish", "conv_glu_type": "swish",
        "depthwise_multiplier": 1, "depthwise_seperable_out_channel": width, "dropout_rate": 0.0,
        "encoder_embedding_config": {"input_size": 80}, "ext_pw_kernel_size": 1, "ext_pw_out_channel": width,
        "input_layer": "nemo_conv", "input_size": 80, "kernel_size": 3, "left_chunk": 18,
        "nemo_conv_settings": {"conv_channels": width}, "time_reduction": 8,
    }  # fmt: skip
    image = {
        "crop_size": 448, "embedding_cls": "tune_image", "hd_transform_order": "sub_glb",
        "image_token_compression_cls": "avg_pool_2d", "projection_cls": "mlp", "use_hd_transform": True,
        "with_learnable_separator": True,
    }  # fmt: skip
    return {
        **decoder, "model_type": "phi4mm", "architectures": ["Phi4MMForCausalLM"],
        "audio_processor": {"name": "cascades", "config": encoder}, "_vision": vision,
        "embd_layer": {"embedding_cls": "image_audio", "image_embd_layer": image, "audio_embd_layer": {
            "compression_rate": 8, "downsample_rate": 1, "embedding_cls": "audio", "projection_cls": "mlp"}},
        "vision_lora": {"r": ranks["vision"], "lora_alpha": 2 * ranks["vision"], "dp": 0.0},
        "speech_lora": {"r": ranks["speech"], "lora_alpha": 2 * ranks["speech"], "dp": 0.01},
    }  # fmt: skip


def _audio(blocks: int, width: int, inner: int, heads: int, distance: int) -> Config:
    return {
        "num_blocks": blocks, "attention_dim": width, "linear_units": inner, "attention_heads": heads,
        "relative_attention_bias_args": {"type": "t5", "t5_bias_max_distance": distance},
    }  # fmt: skip


FULL = original(
    PHI4_DECODER,
    {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
    _audio(24, 1024, 1536, 16, 500),
    {"vision": 256, "speech": 320},
)
SMALL = original(
    SMALL_PHI4_DECODER,
    {"hidden_size": 2 * _HEAD_DIM, "intermediate_size": 96, "num_hidden_layers": 3},
    _audio(2, 32, 48, 2, 20),
    {"vision": 8, "speech": 12},
)


def shapes(config: Config) -> Shapes:
    """Names and shapes in the original layout."""
    hidden = config["hidden_size"]
    table: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    table |= {f"{_EXTEND}image_embed.{n}": s for n, s in _image(config["_vision"], hidden).items()}
    audio = config["audio_processor"]["config"]
    table |= {f"{_EXTEND}audio_embed.{n}": s for n, s in _audio_shapes(audio, hidden).items()}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, (rows, columns) in projections(config).items():
            table[f"{layer}.{name}.base_layer.weight"] = (rows, columns)
            for route in ROUTES:
                rank = config[f"{route}_lora"]["r"]
                table[f"{layer}.{name}.lora_A.{route}.weight"] = (rank, columns)
                table[f"{layer}.{name}.lora_B.{route}.weight"] = (rows, rank)
        for name in ("input_layernorm", "post_attention_layernorm"):
            table[f"{layer}.{name}.weight"] = (hidden,)
    table["model.norm.weight"] = (hidden,)
    return table


def _biased(name: str, rows: int, *columns: int) -> Shapes:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _image(vision: Config, hidden: int) -> Shapes:
    d, inner = vision["hidden_size"], vision["intermediate_size"]
    tower = _biased("embeddings.patch_embedding", d, 3, 14, 14)
    tower["embeddings.position_embedding.weight"] = (1024, d)
    for i in range(vision["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tower |= _biased(f"{layer}.self_attn.{name}", d, d)
        tower |= _biased(f"{layer}.mlp.fc1", inner, d) | _biased(f"{layer}.mlp.fc2", d, inner)
        tower |= _norm(f"{layer}.layer_norm1", d) | _norm(f"{layer}.layer_norm2", d)
    tower |= _norm("post_layernorm", d) | _norm("head.layernorm", d)
    tower |= {"head.probe": (1, 1, d), "head.attention.in_proj_weight": (3 * d, d)}
    tower |= {"head.attention.in_proj_bias": (3 * d,)} | _biased("head.attention.out_proj", d, d)
    tower |= _biased("head.mlp.fc1", inner, d) | _biased("head.mlp.fc2", d, inner)
    around: Shapes = {"glb_GN": (1, 1, d), "sub_GN": (1, 1, 1, d)}
    around |= _biased("img_projection.0", hidden, d) | _biased("img_projection.2", hidden, hidden)
    return {f"img_processor.{name}": shape for name, shape in tower.items()} | around


def _audio_shapes(audio: Config, hidden: int) -> Shapes:
    d, inner = audio["attention_dim"], audio["linear_units"]
    distance = audio["relative_attention_bias_args"]["t5_bias_max_distance"]
    tower: Shapes = {"encoder_embedding.global_mean": (80,), "encoder_embedding.global_invstd": (80,)}
    tower |= _biased("embed.conv.0", d, 1, 3, 3)
    for index in (2, 5):
        tower |= _biased(f"embed.conv.{index}", d, 1, 3, 3) | _biased(f"embed.conv.{index + 1}", d, d, 1, 1)
    tower |= _biased("embed.out", d, 10 * d)
    tower["relative_attention_bias_layer.bias_values.weight"] = (2 * distance, audio["attention_heads"])
    for i in range(audio["num_blocks"]):
        block: Shapes = {}
        for name in ("feed_forward_in", "feed_forward_out"):
            block |= _norm(f"{name}.layer_norm", d) | _biased(f"{name}.net.0.linear", 2 * inner, d)
            block |= _biased(f"{name}.net.2", d, inner)
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            block |= _biased(f"self_attn.{name}", d, d)
        block |= _norm("conv.layer_norm", d) | {"conv.glu.b1": (1, d, 1), "conv.glu.b2": (1, d, 1)}
        block |= _biased("conv.glu.ext_pw_conv_1d", 2 * d, d, 1)
        block |= _biased("conv.dw_sep_conv_1d.dw_conv", d, 1, 3)
        block |= _biased("conv.dw_sep_conv_1d.pw_conv", d, d, 1) | _biased("conv.ext_pw_conv_1d", d, d, 1)
        block |= _norm("layer_norm_att", d) | _norm("layer_norm", d)
        tower |= {f"encoders.{i}.{name}": shape for name, shape in block.items()}
    around: Shapes = {}
    for route in ROUTES:
        around |= _biased(f"audio_projection.{route}.0", hidden, d)
        around |= _biased(f"audio_projection.{route}.2", hidden, hidden)
    return {f"encoder.{name}": shape for name, shape in tower.items()} | around


def native_config(config: Config, image_token: int, audio_token: int) -> Config:
    """config.json in the layout of transformers."""
    audio = config["audio_processor"]["config"]
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("audio_processor", "embd_layer", "_vision", "vision_lora", "speech_lora")
    }
    width = audio["attention_dim"]
    return {
        **kept, "model_type": "phi4_multimodal", "architectures": ["Phi4MultimodalForCausalLM"],
        "vision_config": {
            "model_type": "phi4_multimodal_vision", **config["_vision"],
            "num_attention_heads": config["_vision"]["hidden_size"] // _HEAD_DIM,
            "image_token_id": image_token,
        },
        "audio_config": {
            "model_type": "phi4_multimodal_audio", "hidden_size": width,
            "intermediate_size": audio["linear_units"], "num_attention_heads": audio["attention_heads"],
            "num_blocks": audio["num_blocks"], "nemo_conv_channels": width, "ext_pw_out_channel": width,
            "depthwise_separable_out_channel": width, "audio_token_id": audio_token,
            "bias_max_distance": audio["relative_attention_bias_args"]["t5_bias_max_distance"],
        },
    }  # fmt: skip


def adapter_config(config: Config, route: str) -> dict[str, Any]:
    """adapter_config.json of one adapter."""
    lora = config[f"{route}_lora"]
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": lora["r"], "lora_alpha": lora["lora_alpha"],
        "lora_dropout": lora["dp"], "bias": "none", "fan_in_fan_out": False, "modules_to_save": [],
        "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    }  # fmt: skip


def native_name(name: str) -> tuple[str, str]:
    """(folder of the file, name in it) of an original tensor in the layout of transformers; the base weights'
    folder is empty.
    """
    if found := re.fullmatch(r"(.*\.lora_[AB])\.(\w+)(\.weight)", name):
        return f"{found[2]}-lora", f"base_model.model.{found[1]}{found[3]}"
    name = name.replace(".base_layer.", ".")
    if ".audio_embed.encoder.encoders." in name:
        name = name.replace(".net.0.linear.", ".gate_up_proj.").replace(".net.2.", ".down_proj.")
        name = re.sub(r"\.linear_([qkv])\.", r".\1_proj.", name).replace(".linear_out.", ".o_proj.")
    plain = {
        "img_projection.0": "img_projection_up",
        "img_projection.2": "img_projection_down",
        "glb_GN": "global_img_feature_extensor",
        "sub_GN": "sub_img_feature_extensor",
        "audio_projection.speech.0": "up_proj_for_speech",
        "audio_projection.speech.2": "down_proj_for_speech",
        "audio_projection.vision.0": "up_proj_for_vision_speech",
        "audio_projection.vision.2": "down_proj_for_vision_speech",
    }
    for old, new in plain.items():
        name = name.replace(old, new)
    return "", name
