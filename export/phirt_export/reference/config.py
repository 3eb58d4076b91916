"""Sizes of a Phi-4-multimodal-class model: every number the reference model and the exporter need.

Knows shapes and constants and checks that they fit together. Knows nothing of tensors, files' layouts or
training.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from phirt.bundle.manifest import Tokens
from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.encoders.phi4mm_image import ImageConstants
from phirt.errors import ConfigError
from phirt.fields import Fields, Length, Range, parse_json, read_dataclass, write_dataclass

CONFIG_NAME = "config.json"
# Far past any model; within them a contradiction shows as a tensor of the wrong shape.
_Size = Annotated[int, Range(1, 1 << 24)]
_Layers = Annotated[int, Range(1, 1024)]
_Epsilon = Annotated[float, Range(0.0, 1.0)]
_Positive = Annotated[float, Range(1e-9, 1e13)]
_TokenId = Annotated[int, Range(0, 1 << 24)]
Projection = Literal["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Partial rotary embedding with LongRoPE factors.

    `short_factor` and `long_factor` divide the inverse frequencies, one factor per rotated pair; the long
    ones apply to all positions once the total length exceeds `original_context`. Scalings with one regime
    (linear, llama3, yarn) are equal factors. `magnitude` multiplies both tables in both regimes; None is
    LongRoPE's own, which follows from the two contexts.
    """

    theta: _Positive
    rotary_dim: Annotated[int, Range(2, 1 << 16)]
    original_context: Annotated[int, Range(2, 1 << 24)]  # its logarithm divides
    context: _Size
    short_factor: tuple[_Positive, ...]
    long_factor: tuple[_Positive, ...]
    magnitude: _Positive | None = None

    def __post_init__(self) -> None:
        pairs = self.rotary_dim // 2
        if self.rotary_dim % 2 or len(self.short_factor) != pairs or len(self.long_factor) != pairs:
            raise ConfigError(
                f"rotary_dim {self.rotary_dim} needs {pairs} short and long factors, got "
                f"{len(self.short_factor)} and {len(self.long_factor)}"
            )

    @property
    def has_long_regime(self) -> bool:
        """Whether positions past `original_context` use other factors."""
        return self.context > self.original_context and self.short_factor != self.long_factor


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The language model: pre-norm, grouped-query attention; Phi-4-mini's choices are the defaults.

    `biases` names the projections that have one; `qk_norm` normalises queries and keys of each head before
    they turn (Qwen3); `tied` scores tokens by the embedding table; with a `sliding_window` of W a position
    attends to itself and the W - 1 before it.
    """

    num_layers: _Layers
    hidden_size: _Size
    num_heads: _Size
    num_kv_heads: _Size
    head_dim: _Size
    intermediate_size: _Size
    vocab_size: _Size
    norm_eps: _Epsilon
    rope: RopeConfig
    biases: tuple[Projection, ...] = ()
    qk_norm: bool = False
    tied: bool = True
    sliding_window: _Size | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.rope.rotary_dim > self.head_dim:
            raise ConfigError(f"rotary_dim {self.rope.rotary_dim} exceeds head_dim {self.head_dim}")

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection: queries, then keys, then values, head-major."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def fused_rows(self) -> dict[str, dict[str, int]]:
        """The projections that are several in one, and the rows of each of these, in order."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "qkv_proj": {"q_proj": queries, "k_proj": keys, "v_proj": keys},
            "gate_up_proj": {"gate_proj": self.intermediate_size, "up_proj": self.intermediate_size},
        }


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """One LoRA branch on the four projections of every layer."""

    rank: _Size
    alpha: Annotated[float, Range(0.0, 1e13)]
    dropout: Annotated[float, Range(0.0, 1.0)] = 0.0

    @property
    def scale(self) -> float:
        """Factor of the branch's output."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(ImageConstants):
    """SigLIP-style tower on square crops: what prepares them (ImageConstants), and the tower itself.

    `num_layers` counts the layers that are computed: published checkpoints take the output of the last but
    one, so their final layer is not part of this model. `stem_channels` replaces the single patch convolution
    by a residual convolutional stem (one entry per halving; the last equals `hidden_size` and 2**len equals
    `patch_size`): with a few thousand training pictures convolutions learn what plain patches cannot. Empty
    for published checkpoints. `max_pixels` is the largest picture that a bundle decodes: what cameras make;
    the tower looks at `max_crops` crops of it, whatever its size.
    """

    pool: Annotated[int, Range(1, 64)] = 2
    min_side: Annotated[int, Range(1, 4096)] = 10
    hidden_size: _Size
    intermediate_size: _Size
    num_layers: _Layers
    num_heads: _Size
    norm_eps: _Epsilon
    stem_channels: Annotated[tuple[_Size, ...], Length(0, 16)] = ()
    max_pixels: Annotated[int, Range(1, 1 << 34)] = 100_000_000

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _check_heads(self.hidden_size, self.num_heads)
        if self.stem_channels and (
            self.stem_channels[-1] != self.hidden_size or 2 ** len(self.stem_channels) != self.patch_size
        ):
            raise ConfigError(
                "stem_channels must end in hidden_size and halve once for each factor 2 of patch_size"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig(AudioConstants):
    """Conformer tower over log-mel frames: what prepares them (AudioConstants), and the tower itself.

    `bias_max_distance` bounds the relative positions; `max_seconds` is the longest clip that the model was
    made for.
    """

    sample_rate: Annotated[int, Range(16000, 16000)] = 16000
    subsampling: Annotated[int, Range(1, 64)] = 8
    hidden_size: _Size
    intermediate_size: _Size
    num_layers: _Layers
    num_heads: _Size
    kernel_size: _Size
    bias_max_distance: _Size
    norm_eps: _Epsilon = 1e-5
    max_seconds: Annotated[float, Range(0.05, 86400.0)] = 60.0

    def __post_init__(self) -> None:
        _check_heads(self.hidden_size, self.num_heads)
        if self.subsampling != 8:
            raise ConfigError(
                f"subsampling {self.subsampling} cannot be built: three convolutions halve three times"
            )


@dataclasses.dataclass(frozen=True)
class PhotoBlock:
    """One block of an EfficientNet-Lite trunk: channels, how much wider it is inside, and its depthwise
    window.
    """

    inputs: _Size
    outputs: _Size
    expansion: Annotated[int, Range(1, 64)]
    kernel: Annotated[int, Range(1, 15)]
    step: Annotated[int, Range(1, 2)] = 1

    @property
    def is_residual(self) -> bool:
        """Whether what comes in is added to what comes out."""
        return self.step == 1 and self.inputs == self.outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoConfig:
    """An EfficientNet-Lite tower on one square picture.

    Attributes:
        size: side of the square in pixels; the shorter side is fitted, the middle cut out.
        blocks, channels: the trunk, and the width of what it gives.
        classes: for each classifier the names of its classes; an empty name says nothing.
        words: rows that each classifier gives.
        projector_size: inner width of the projector.
    """

    size: Annotated[int, Range(96, 4096)]
    blocks: Annotated[tuple[PhotoBlock, ...], Length(1, 256)]
    channels: _Size
    classes: Annotated[tuple[Annotated[tuple[str, ...], Length(1, 1 << 16)], ...], Length(0, 16)] = ()
    words: Annotated[int, Range(1, 64)] = 4
    projector_size: _Size
    max_pixels: Annotated[int, Range(1, 1 << 34)] = 100_000_000

    def __post_init__(self) -> None:
        for before, after in itertools.pairwise(self.blocks):
            if before.outputs != after.inputs:
                raise ConfigError(f"a block of {before.outputs} channels stands before one of {after.inputs}")
        if self.grid < 3:
            raise ConfigError(f"size {self.size} leaves a grid of {self.grid}, less than a window of 3")

    @property
    def grid(self) -> int:
        """Side of the trunk's maps."""
        side = -(-self.size // 2)
        for block in self.blocks:
            side = -(-side // block.step)
        return side

    @property
    def num_windows(self) -> int:
        """Rows that a picture's parts make: windows of 3 by 3, every second."""
        return ((self.grid - 3) // 2 + 1) ** 2

    @property
    def num_tokens(self) -> int:
        """All rows of a picture."""
        return len(self.classes) * self.words + self.num_windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Whisper's encoder as a tower.

    Attributes:
        num_mels, hidden_size, num_layers, num_heads: the encoder.
        stacked: encoder frames of 20 ms that make a row.
        pieces: pieces of words that the recogniser knows.
        projector_size: inner width of recogniser and projector.
        max_seconds: the longest recording that the model was made for.
    """

    num_mels: Annotated[int, Range(1, 512)]
    hidden_size: _Size
    num_layers: _Layers
    num_heads: _Size
    stacked: Annotated[int, Range(1, 64)] = 4
    pieces: Annotated[tuple[str, ...], Length(1, 1 << 16)]
    projector_size: _Size
    max_seconds: Annotated[float, Range(0.05, 86400.0)] = 30.0

    def __post_init__(self) -> None:
        _check_heads(self.hidden_size, self.num_heads)


@dataclasses.dataclass(frozen=True)
class TokenConfig(Tokens):
    """Special token ids the model itself depends on; `image` and `audio` are the placeholders, None where it
    takes no such media.
    """

    image: _TokenId | None
    audio: _TokenId | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model. `vision` or `photo`, and `audio` or `whisper`, are its towers, where it has any;
    `adapters` maps a route's adapter name to its branch.
    """

    decoder: DecoderConfig
    tokens: TokenConfig
    vision: VisionConfig | None
    audio: AudioConfig | None
    adapters: Mapping[str, AdapterConfig]
    photo: PhotoConfig | None = None
    whisper: WhisperConfig | None = None

    def __post_init__(self) -> None:
        if (self.vision and self.photo) or (self.audio and self.whisper):
            raise ConfigError(
                "a model has two towers for one modality; give vision or photo, audio or whisper"
            )

    def to_json(self) -> str:
        """The configuration as JSON text; `from_json` reads it back unchanged."""
        return json.dumps(write_dataclass(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse `to_json` output.

        Raises:
            ConfigError: a field is missing, unknown or contradicts another.
        """
        remedy = "write it with ModelConfig.to_json"
        document = parse_json(text.encode("utf-8", "replace"), CONFIG_NAME, ConfigError, remedy)
        fields = Fields(document, CONFIG_NAME, ConfigError, remedy, closed=True)
        return read_dataclass(cls, fields)


def check_values(config: ModelConfig) -> None:
    """Raises ConfigError where a number of a configuration that was built by hand is out of its range."""
    fields = Fields(write_dataclass(config), "the model", ConfigError, "it cannot be built")
    read_dataclass(ModelConfig, fields)


def _check_heads(hidden_size: int, num_heads: int) -> None:
    if hidden_size % num_heads:
        raise ConfigError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` of a checkpoint folder written by this project.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no {CONFIG_NAME}; a checkpoint folder has {CONFIG_NAME} and model.safetensors"
        )
    return ModelConfig.from_json(path.read_text(encoding="utf-8", errors="replace"))
