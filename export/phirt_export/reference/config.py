"""Sizes of a Phi-4-multimodal-class model: every number the reference model and the exporter need.

Knows shapes and constants and checks that they fit together. Knows nothing of tensors, files' layouts or
training.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from phirt.bundle.manifest import Tokens
from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.encoders.phi4mm_image import ImageConstants
from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json, read_dataclass, write_dataclass

CONFIG_NAME = "config.json"
# Far past any model; within them a contradiction shows as a tensor of the wrong shape.
_MAX_INTEGER, _MAX_FLOAT = 1 << 24, 1e13
_HIGHEST = {"num_layers": 1024, "max_pixels": 1 << 34}
_LOWEST = {"original_context": 2}  # its logarithm divides
PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Partial rotary embedding with LongRoPE factors.

    `short_factor` and `long_factor` divide the inverse frequencies, one factor per rotated pair; the long
    ones apply to all positions once the total length exceeds `original_context`. Scalings with one regime
    (linear, llama3, yarn) are equal factors. `magnitude` multiplies both tables in both regimes; None is
    LongRoPE's own, which follows from the two contexts.
    """

    theta: float
    rotary_dim: int
    original_context: int
    context: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    magnitude: float | None = None

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

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    rope: RopeConfig
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    tied: bool = True
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.biases) - set(PROJECTIONS):
            raise ConfigError(
                f"biases of {sorted(unknown)} are not known, accepted: {', '.join(PROJECTIONS)}"
            )
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


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """One LoRA branch on the four projections of every layer."""

    rank: int
    alpha: float
    dropout: float = 0.0

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

    pool: int = 2
    min_side: int = 10
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    stem_channels: tuple[int, ...] = ()
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(str(error)) from error
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

    sample_rate: int = 16000
    subsampling: int = 8
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    kernel_size: int
    bias_max_distance: int
    norm_eps: float = 1e-5
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.subsampling != 8:
            raise ConfigError(
                f"subsampling {self.subsampling} cannot be built: three convolutions halve three times"
            )


@dataclasses.dataclass(frozen=True)
class TokenConfig(Tokens):
    """Special token ids the model itself depends on; `image` and `audio` are the placeholders, None where it
    takes no such media.
    """

    image: int | None
    audio: int | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model. `vision` and `audio` may be absent; `adapters` maps a route's adapter name to its
    branch.
    """

    decoder: DecoderConfig
    tokens: TokenConfig
    vision: VisionConfig | None
    audio: AudioConfig | None
    adapters: Mapping[str, AdapterConfig]

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
        config = read_dataclass(cls, fields)
        try:
            check_values(config)
        except ValueError as error:
            raise fields.refusal(str(error)) from error
        return config


def check_values(part: Any) -> None:
    """Raises ValueError where a number of `part`, or of what it holds, is no number or out of any range."""
    hints = get_type_hints(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        kind = str(hints[field.name])
        if dataclasses.is_dataclass(value):
            check_values(value)
        elif isinstance(value, Mapping):
            for inner in value.values():
                check_values(inner)
        elif "int" in kind or "float" in kind:
            accepted = (int, float) if "float" in kind else (int,)
            highest = _MAX_FLOAT if float in accepted else _HIGHEST.get(field.name, _MAX_INTEGER)
            # Ids may be 0 and so may numbers that are no sizes; nothing is of size 0.
            lowest = 0 if isinstance(part, TokenConfig) or float in accepted else _LOWEST.get(field.name, 1)
            for number in value if isinstance(value, tuple) else (value,):
                absent = number is None and "None" in kind
                if not absent and (type(number) not in accepted or not lowest <= number <= highest):
                    raise ValueError(f"{field.name} is {number!r:.80}")


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
