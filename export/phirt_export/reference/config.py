"""Sizes of a Phi-4-multimodal-class model: every number the reference model and the exporter need.

Knows shapes and constants and checks that they fit together. Knows nothing of tensors, files' layouts or
training.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError

CONFIG_NAME = "config.json"
# Far past any model; within them a contradiction shows as a tensor of the wrong shape.
_MAX_INTEGER, _MAX_FLOAT = 1 << 24, 1e13
_MAX_LAYERS = 1024
_LOWEST = {"original_context": 2}  # its logarithm divides
PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Partial rotary embedding with LongRoPE factors (spec section A).

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
    """The language model: pre-norm, grouped-query attention; Phi-4-mini's choices are the defaults (spec
    section A).

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
    """One LoRA branch on the four projections of every layer (spec section D)."""

    rank: int
    alpha: float
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """Factor of the branch's output."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """SigLIP-style tower on square crops (spec section B).

    `num_layers` counts the layers that are computed: published checkpoints take the output of the last but
    one, so their final layer is not part of this model. `stem_channels` replaces the single patch convolution
    by a residual convolutional stem (one entry per halving; the last equals `hidden_size` and 2**len equals
    `patch_size`): with a few thousand training pictures convolutions learn what plain patches cannot. Empty
    for published checkpoints.
    """

    crop_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    max_crops: int
    pool: int = 2
    stem_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.crop_size % (self.patch_size * self.pool):
            raise ConfigError(
                f"crop_size {self.crop_size} must be a multiple of {self.patch_size * self.pool}"
            )
        if self.stem_channels and (
            self.stem_channels[-1] != self.hidden_size or 2 ** len(self.stem_channels) != self.patch_size
        ):
            raise ConfigError(
                "stem_channels must end in hidden_size and halve once for each factor 2 of patch_size"
            )

    @property
    def grid(self) -> int:
        """Patches on one side of a crop."""
        return self.crop_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Conformer tower over log-mel frames (spec section C). `bias_max_distance` bounds the relative
    positions.
    """

    num_mels: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    kernel_size: int
    bias_max_distance: int
    window_tokens: int
    norm_eps: float = 1e-5
    subsampling: int = 8

    def __post_init__(self) -> None:
        if self.subsampling != 8:
            raise ConfigError(
                f"subsampling {self.subsampling} cannot be built: three convolutions halve three times"
            )


@dataclasses.dataclass(frozen=True)
class TokenConfig:
    """Special token ids the model itself depends on; `image` and `audio` are None where it takes no such
    media.
    """

    bos: int
    pad: int
    eos: tuple[int, ...]
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
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse `to_json` output.

        Raises:
            ConfigError: a field is missing, unknown or contradicts another.
        """
        try:
            raw = json.loads(text)
            config = cls(
                decoder=_decoder(raw["decoder"]),
                tokens=TokenConfig(**{**raw["tokens"], "eos": tuple(raw["tokens"]["eos"])}),
                vision=_vision(raw["vision"]),
                audio=AudioConfig(**raw["audio"]) if raw["audio"] else None,
                adapters={name: AdapterConfig(**branch) for name, branch in raw["adapters"].items()},
            )
            check_values(config)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ConfigError(f"the model configuration does not parse: {error!r}") from error
        return config


def check_values(part: Any) -> None:
    """Raises ValueError where a number of `part`, or of what it holds, is no number or out of any range."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        kind = str(field.type)
        if dataclasses.is_dataclass(value):
            check_values(value)
        elif kind.startswith("Mapping"):
            for inner in value.values():
                check_values(inner)
        elif "int" in kind or "float" in kind:
            accepted = (int, float) if "float" in kind else (int,)
            highest: float = _MAX_LAYERS if field.name == "num_layers" else _MAX_INTEGER
            highest = _MAX_FLOAT if float in accepted else highest
            # Ids may be 0 and so may numbers that are no sizes; nothing is of size 0.
            lowest = 0 if isinstance(part, TokenConfig) or float in accepted else _LOWEST.get(field.name, 1)
            for number in value if isinstance(value, tuple) else (value,):
                absent = number is None and "None" in kind
                if not absent and (type(number) not in accepted or not lowest <= number <= highest):
                    raise ValueError(f"{field.name} is {number!r:.80}")


def _decoder(raw: dict[str, Any]) -> DecoderConfig:
    rope = raw["rope"]
    factors = {name: tuple(rope[name]) for name in ("short_factor", "long_factor")}
    biases = tuple(raw.get("biases", ()))
    return DecoderConfig(**{**raw, "biases": biases, "rope": RopeConfig(**{**rope, **factors})})


def _vision(raw: dict[str, Any] | None) -> VisionConfig | None:
    return VisionConfig(**{**raw, "stem_channels": tuple(raw["stem_channels"])}) if raw else None


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
