"""The whole reference model: token ids and media features in, logits out, under one of three routes.

Knows how the towers, the decoder and the LoRA branches fit together. Knows nothing of files, text or
training.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt_export.reference.audio import AudioEmbed
from phirt_export.reference.config import ModelConfig, RopeConfig
from phirt_export.reference.decoder import Layer, WeightTransform, rope_tables
from phirt_export.reference.efficientnet import PhotoEmbed
from phirt_export.reference.packed import Documents
from phirt_export.reference.vision import ImageEmbed
from phirt_export.reference.whisper import SoundEmbed

Route = Literal["none", "vision", "speech"]


class RouteChoice(NamedTuple):
    """What a route switches on, as `modeling_phi4mm.py` beside Phi-4-multimodal's weights has it."""

    adapter: str | None
    audio_projector: str


ROUTES: dict[Route, RouteChoice] = {
    "none": RouteChoice(None, "speech"),
    "vision": RouteChoice("vision", "vision"),
    "speech": RouteChoice("speech", "speech"),
}


class MediaEmbeds(nn.Module):
    """Holds the towers under their checkpoint names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vision:
            self.image_embed = ImageEmbed(config.vision, config.decoder.hidden_size)
        if config.audio:
            self.audio_embed = AudioEmbed(config.audio, config.decoder.hidden_size)
        if config.photo:
            self.photo_embed = PhotoEmbed(config.photo, config.decoder.hidden_size)
        if config.whisper:
            self.sound_embed = SoundEmbed(config.whisper, config.decoder.hidden_size)


class Backbone(nn.Module):
    """Embeddings, towers, layers and final norm, named as in the checkpoint under `model.`."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.embed_tokens = nn.Embedding(decoder.vocab_size, decoder.hidden_size)
        self.embed_tokens_extend = MediaEmbeds(config)
        self.layers = nn.ModuleList(Layer(decoder, config.adapters) for _ in range(decoder.num_layers))
        self.norm = nn.RMSNorm(decoder.hidden_size, eps=decoder.norm_eps)
        self.set_rope(decoder.rope)

    def set_rope(self, rope: RopeConfig) -> None:
        """Turn positions so from now on."""
        # Tables of the short regime, kept: a compiled forward pass would compute them in every kernel.
        cos, sin = rope_tables(rope, rope.original_context)
        device = self.embed_tokens.weight.device
        self.register_buffer("rope_cos", cos.to(device), persistent=False)
        self.register_buffer("rope_sin", sin.to(device), persistent=False)
        self.rope = rope

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [length, rotary_dim / 2] for a sequence of this total length."""
        if length <= self.rope.original_context:
            return self.rope_cos[:length], self.rope_sin[:length]
        cos, sin = rope_tables(self.rope, length)
        return cos.to(self.rope_cos.device), sin.to(self.rope_sin.device)

    def packed_rotary(self, documents: Documents) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, T, rotary_dim / 2]: each document turns as if it were alone."""
        short = min(documents.longest, self.rope.original_context)
        tables = [table[documents.positions.clamp(max=short - 1)] for table in self.rotary(short)]
        if documents.longest > self.rope.original_context:
            is_long = (documents.lengths > self.rope.original_context)[..., None]
            turned = [table[documents.positions] for table in self.rotary(documents.longest)]
            tables = [torch.where(is_long, long, own) for long, own in zip(turned, tables, strict=True)]
        cos, sin = tables
        return cos[:, None], sin[:, None]


class Model(nn.Module):
    """A Phi-4-multimodal-class model of any size, or a decoder alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.decoder.tied:
            self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)
        self.embedding_transform: WeightTransform | None = None

    def set_rope(self, rope: RopeConfig) -> None:
        """Turn positions so from now on; a checkpoint of the model says so, too."""
        self.config = dataclasses.replace(
            self.config, decoder=dataclasses.replace(self.config.decoder, rope=rope)
        )
        self.model.set_rope(rope)

    @property
    def image_embed(self) -> ImageEmbed:
        """The vision tower with its projector."""
        return self.model.embed_tokens_extend.image_embed

    @property
    def audio_embed(self) -> AudioEmbed:
        """The audio tower with its projectors."""
        return self.model.embed_tokens_extend.audio_embed

    @property
    def photo_embed(self) -> PhotoEmbed:
        """The tower of square photos with its projector."""
        return self.model.embed_tokens_extend.photo_embed

    @property
    def sound_embed(self) -> SoundEmbed:
        """Whisper's tower with its projector."""
        return self.model.embed_tokens_extend.sound_embed

    def embedding_weight(self) -> Tensor:
        """The table [vocab, hidden] that embeds tokens and, where it is tied, scores them."""
        weight = self.model.embed_tokens.weight
        return self.embedding_transform(weight) if self.embedding_transform else weight

    def head_weight(self) -> Tensor:
        """The matrix [vocab, hidden] that scores tokens."""
        return self.embedding_weight() if self.config.decoder.tied else self.lm_head.weight

    def is_media(self, input_ids: Tensor) -> Tensor:
        """True where a token is a placeholder for a row of media features."""
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        for token in (self.config.tokens.image, self.config.tokens.audio):
            if token is not None:
                found = found | (input_ids == token)
        return found

    def hidden_states(
        self,
        input_ids: Tensor,
        media_features: Tensor | None = None,
        route: Route = "none",
        mask: Tensor | Documents | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, hidden] of ids [B, T].

        Args:
            input_ids: int64 [B, T].
            media_features: [rows, hidden]: the rows that replace the placeholders, batch-major, in order.
            route: which LoRA branch is active.
            mask: bool [B, 1, T, T], True = may attend; None for the causal mask, within the sliding window;
                or the documents that share the rows, each of which sees itself alone.
        """
        if mask is None:
            mask = self.window_mask(input_ids.shape[1], input_ids.device)
        x = F.embedding(input_ids, self.embedding_weight())
        if media_features is not None:
            placeholders = self.is_media(input_ids)[..., None].expand_as(x)
            x = x.masked_scatter(placeholders, media_features.to(x.dtype))
        if isinstance(mask, Documents):
            cos, sin = self.model.packed_rotary(mask)
        else:
            cos, sin = self.model.rotary(input_ids.shape[1])
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask, ROUTES[route].adapter)
        normed: Tensor = self.model.norm(x)
        return normed

    def forward(
        self,
        input_ids: Tensor,
        media_features: Tensor | None = None,
        route: Route = "none",
        mask: Tensor | Documents | None = None,
    ) -> Tensor:
        """Logits [B, T, vocab]; arguments as in `hidden_states`."""
        return F.linear(self.hidden_states(input_ids, media_features, route, mask), self.head_weight())

    def window_mask(self, length: int, device: torch.device) -> Tensor | None:
        """The causal mask of a sliding window that is shorter than a sequence of this length; None where
        causality is all.
        """
        window = self.config.decoder.sliding_window
        if window is None or length <= window:
            return None
        side = torch.arange(length, device=device)
        distance = side[:, None] - side[None, :]
        return ((distance >= 0) & (distance < window))[None, None]


_BY_FAN_IN = (
    "lora_A", "conv", "stem", "patch_embedding", "audio_embed.encoder.e", "photo_embed.trunk.",
    "sound_embed.",
)  # fmt: skip


def initialize(model: Model, seed: int) -> None:
    """Draw fresh weights, a function of the seed alone.

    Matrices normal(0, 0.02), residual outputs scaled by depth; convolutions, stem, LoRA A and the audio
    encoder by their fan-in; LoRA B and biases zero, norms as constructed.
    """
    generator = torch.Generator().manual_seed(seed)
    depth = (2 * model.config.decoder.num_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "norm" in name or name.endswith((".b1", ".b2")):
                continue
            if parameter.dim() < 2:
                parameter.zero_()
                continue
            if any(part in name for part in _BY_FAN_IN):
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
                continue
            residual = name.endswith(("o_proj.base_layer.weight", "down_proj.base_layer.weight"))
            parameter.normal_(0.0, 0.02 * (depth if residual else 1.0), generator=generator)
