"""What both published layouts of Phi-4-multimodal share.

Knows the sizes that the original's code fixes and which stored tensors nothing computes with. Sources: the
modules beside the published weights (`modeling_phi4mm.py`, `vision_siglip_navit.py`,
`speech_conformer_encoder.py`) and transformers' `phi4_multimodal`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.published.decoder import is_idle, read_decoder, read_tokens
from phirt_export.published.layout import Published
from phirt_export.reference.config import AdapterConfig, AudioConfig, ModelConfig, VisionConfig

TOWER = "model.embed_tokens_extend.image_embed.img_processor."
VISION_EPS, POOL = 1e-6, 2  # of SigLIP so400m
WINDOW_TOKENS = 500  # of the audio encoder's attention
MAX_SECONDS = 1800.0  # the longest recordings that its speech summaries were trained on (technical report)
# Behind the layer whose output is taken; never computed.
_IDLE_TOWER = ("post_layernorm.", "head.")
_MAX_CROPS = 36


def multimodal_config(
    published: Published,
    vision: VisionConfig,
    audio: AudioConfig,
    media: tuple[int, int],
    adapters: dict[str, AdapterConfig],
) -> ModelConfig:
    """The whole model; `media` are the placeholders' ids. Raises ConfigError where they cannot be."""
    window = published.config.optional_integer("sliding_window", 1)
    decoder = read_decoder(published, window=window)
    if max(media) >= decoder.vocab_size or media[0] == media[1]:
        raise published.config.refusal(
            f"the media placeholders {media[0]} and {media[1]} must be two ids of the vocabulary of "
            f"{decoder.vocab_size}"
        )
    tokens = read_tokens(published, decoder.vocab_size, *media)
    return ModelConfig(decoder=decoder, tokens=tokens, vision=vision, audio=audio, adapters=adapters)


def idle_tensors(model: ModelConfig) -> Callable[[str], bool]:
    """Which stored tensors no computation needs."""
    assert model.vision is not None
    last = f"{TOWER}encoder.layers.{model.vision.num_layers}."
    idle = (last, *(TOWER + part for part in _IDLE_TOWER))
    decoder_idle = is_idle(model.decoder)
    return lambda name: name.startswith(idle) or decoder_idle(name)


def require_values(config: Fields, values: dict[str, int | bool]) -> None:
    """Values that the encoder here is built for; another one would mean another arithmetic."""
    for key, value in values.items():
        if config.has(key) and config.raw(key) != value:
            raise config.refusal(f"{key!r} is {config.raw(key)!r:.80}, accepted: {value!r}")


def max_crops(folder: Path) -> int:
    """The most crops that a picture is cut into beside the view of the whole."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return _MAX_CROPS
    config = read_json(path, "fetch the checkpoint's own preprocessor_config.json")
    return config.integer("dynamic_hd", 1, 256) if config.has("dynamic_hd") else _MAX_CROPS
