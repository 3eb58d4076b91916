"""Recipes: a TOML file that says which stages run, on what data, with which sizes and schedules.

Knows the file's fields and checks them once. Knows nothing of tensors or of how a stage is carried out.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from phirt.errors import ConfigError
from phirt_export.reference.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    RopeConfig,
    TokenConfig,
    VisionConfig,
)
from phirt_train.options import STAGE_DATA, StageData


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps: linear warm-up, then a cosine from `peak` to `final_ratio`·peak.

    `muon` orthogonalises the updates of hidden matrices and convolutions; everything else takes AdamW.
    """

    peak: float
    warmup_steps: int = 100
    final_ratio: float = 0.05
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    beta2: float = 0.98
    muon: bool = False


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage: what it starts from, what it trains, on what, for how long.

    Attributes:
        name: folder of the stage under the run folder.
        objective: registered name (`phirt_train.objectives`).
        starts_from: stages whose weights are taken; empty for fresh weights.
        trains: beginnings of the names of the parameters that are trained, or, with a leading `*`, any part
            of them; all others stay frozen.
        steps, batch: length and items of a step.
        data: what the objective learns from (`phirt_train.options`).
        ema: decay of the averaged weights that the stage ends with; 0 keeps the last weights.
        quantize_aware: train the decoder's base weights on the int4 grid with this block size; 0 for off.
        compile: let torch compile the forward pass, where the objective can and a compiler is at hand.
    """

    name: str
    objective: str
    starts_from: tuple[str, ...]
    trains: tuple[str, ...]
    steps: int
    batch: int
    schedule: Schedule
    data: StageData
    ema: float = 0.0
    quantize_aware: int = 0
    compile: bool = False


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The byte-level BPE tokenizer: vocabulary size, and the files and conversations it learns from.

    At most `max_bytes` characters of each file of `sources` and `max_chats` conversations of each source in
    `chats`.
    """

    vocab_size: int
    sources: tuple[str, ...]
    max_bytes: int
    chats: tuple[str, ...]
    max_chats: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    name: str
    seed: int
    model: ModelConfig
    tokenizer: TokenizerConfig
    stages: tuple[StageConfig, ...]
    chat_template: str


SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|endoftext10|>",
    "<|endoftext11|>",
    "<|assistant|>",
    "<|end|>",
    "<|user|>",
    "<|system|>",
    "<|tool|>",
    "<|/tool|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<|tool_response|>",
)
TOKEN_IDS = TokenConfig(bos=0, pad=0, eos=(0, SPECIAL_TOKENS.index("<|end|>")), image=1, audio=2)


TOP_LEVEL = {"name", "seed", "chat_template", "model", "tokenizer", "stage"}


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the nested values of `changes` in place."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _build(cls: type, raw: Any, where: str) -> Any:
    """A dataclass from a table, nested ones too; unknown, missing and mistyped fields are named."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is {raw!r}; accepted: a table")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = set(raw) - set(fields)
    missing = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and name not in raw
    }
    if unknown or missing:
        raise ConfigError(
            f"{where}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}; "
            f"known: {sorted(fields)}"
        )
    hints = get_type_hints(cls)
    values = {name: _value(value, hints[name], f"{where}: {name}") for name, value in raw.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _value(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as the type of its field."""
    if dataclasses.is_dataclass(value):
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    origin = get_origin(hint)
    if origin is tuple and isinstance(value, list | tuple):
        inner = get_args(hint)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(_value(v, k, where) for v, k in zip(value, kinds, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        kind = get_args(hint)[1]
        return {name: _value(item, kind, f"{where}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{where} is {value!r}; accepted: {getattr(hint, '__name__', None) or hint}")


def _model(raw: Mapping[str, Any]) -> ModelConfig:
    decoder = dict(raw["decoder"])
    rope = dict(decoder.pop("rope"))
    pairs = rope["rotary_dim"] // 2
    rope.setdefault("short_factor", [1.0] * pairs)
    rope.setdefault("long_factor", [1.0] * pairs)
    return ModelConfig(
        decoder=_build(
            DecoderConfig,
            {**decoder, "rope": _build(RopeConfig, rope, "model.decoder.rope")},
            "model.decoder",
        ),
        tokens=TOKEN_IDS,
        vision=_build(VisionConfig, raw["vision"], "model.vision"),
        audio=_build(AudioConfig, raw["audio"], "model.audio"),
        adapters={
            name: _build(AdapterConfig, branch, f"model.adapters.{name}")
            for name, branch in raw["adapters"].items()
        },
    )


def _stage(raw: Mapping[str, Any], step_scale: float) -> StageConfig:
    where = f"stage {raw.get('name', '?')}"
    kind = raw.get("objective")
    if kind is not None and kind not in STAGE_DATA:
        raise ConfigError(f"{where}: objective is {kind!r}; accepted: {', '.join(STAGE_DATA)}")
    fields = dict(raw)
    if kind is not None and "data" in fields:
        fields["data"] = _build(STAGE_DATA[kind], fields["data"], f"{where}: data")
    stage: StageConfig = _build(StageConfig, fields, where)
    if stage.steps < 1 or stage.batch < 1:
        raise ConfigError(f"{where}: steps is {stage.steps} and batch {stage.batch}; accepted: from 1")
    return dataclasses.replace(stage, steps=max(1, round(stage.steps * step_scale)))


def _scaled(stage: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A stage with a scale's values in place; of `data`, only what the stage itself names."""
    known = stage.get("data", {})
    data = {name: value for name, value in changes.get("data", {}).items() if name in known}
    return _merge(stage, {**changes, "data": data})


def load_recipe(path: Path, scale: str | None = None) -> Recipe:
    """Read a recipe; `scale` names one of its `[scale.NAME]` tables, whose values replace the recipe's own.

    A scale table may hold `model` (nested sizes), `tokenizer`, `step_scale` and `stage` (values for every
    stage; of `data`, those that the stage has).

    Raises:
        ConfigError: the file is missing, is no TOML, or holds unknown, missing or contradicting values.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    scales = raw.pop("scale", {})
    if scale is not None and scale not in scales:
        raise ConfigError(f"{path} has no scale {scale!r}; it has: {', '.join(sorted(scales)) or 'none'}")
    changes = dict(scales[scale]) if scale else {}
    step_scale = float(changes.pop("step_scale", 1.0))
    stage_changes = changes.pop("stage", {})
    raw = _merge(raw, changes)
    unknown = set(raw) - TOP_LEVEL
    if unknown:
        raise ConfigError(f"{path}: unknown fields {sorted(unknown)}; known: {sorted(TOP_LEVEL)}")
    try:
        stages = tuple(_stage(_scaled(stage, stage_changes), step_scale) for stage in raw["stage"])
        recipe = Recipe(
            name=raw["name"] if scale is None else f"{raw['name']}-{scale}",
            seed=raw["seed"],
            model=_model(raw["model"]),
            tokenizer=_build(TokenizerConfig, raw["tokenizer"], "tokenizer"),
            stages=stages,
            chat_template=raw["chat_template"],
        )
    except KeyError as error:
        raise ConfigError(f"{path} lacks the field {error}") from error
    if recipe.tokenizer.vocab_size != recipe.model.decoder.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer learns {recipe.tokenizer.vocab_size} tokens, the decoder has "
            f"{recipe.model.decoder.vocab_size}; give both the same vocab_size"
        )
    _check_order(recipe)
    return recipe


def _check_order(recipe: Recipe) -> None:
    seen: set[str] = set()
    for stage in recipe.stages:
        later = [name for name in stage.starts_from if name not in seen]
        if later:
            raise ConfigError(f"stage {stage.name} starts from {later}, which no earlier stage provides")
        if stage.name in seen:
            raise ConfigError(f"two stages are called {stage.name}")
        seen.add(stage.name)
