"""Recipes: a TOML file that says which stages run, on what data, with which sizes and schedules.

Knows the file's tables and checks all of them once. What an objective learns from is the objective's own
matter, as are the options of steps and the numbers of a model. Knows nothing of tensors or of how a stage is
carried out.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import jinja2
import jinja2.sandbox

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, Matching, Range, read_dataclass
from phirt_export.chat_files import read_template
from phirt_export.checkpoint import Checkpoint
from phirt_export.reference import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    TokenConfig,
    VisionConfig,
)
from phirt_train.chat_format import CHAT_TEMPLATE, SPECIAL_TOKENS, SpecialTokens
from phirt_train.given_tokenizer import given_tokenizer, ids_of
from phirt_train.outside import find_outside
from phirt_train.scales import Scale, merged
from phirt_train.schedules import check_chains, check_warmups
from phirt_train.stage import StageConfig
from phirt_train.stage_table import REMEDY, open_fields, read_stage, read_step, stage_ropes, with_rope
from phirt_train.step import StepConfig, step_of

RECIPE_NAME = "recipe.toml"
_MAX_BYTES = 1 << 20
_SINGLE_TABLE = re.compile(rb"^\s*\[(stage|step)\]", re.MULTILINE)
_RESERVED = ("cache", "checkpoint", "made", "prepared", "tensorboard")  # what else lies in a run's folder
_Name = Annotated[str, Matching("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, . - and _")]
_Module = Annotated[
    str, Matching("[A-Za-z_][A-Za-z0-9_]*[.]py", "the name of a Python file beside the recipe")
]
_Neighbour = Annotated[
    str,
    Matching("([.][.]/)*([A-Za-z0-9_-]+/)*[A-Za-z_][A-Za-z0-9_]*", "a folder as Python names packages"),
]
_Seed = Annotated[int, Range(0, (1 << 31) - 1)]


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The byte-level BPE tokenizer that is learnt, or another that is taken as it is.

    Attributes:
        file: a tokenizer.json, or the checkpoint whose tokenizer is taken; by default one is learnt.
        vocab_size: tokens, special ones included; the decoder's vocab_size.
        sources: files of JSON lines whose texts it learns from; by default all that the stages read.
        max_characters: most characters of each file.
        special: the special tokens and what they mean.
    """

    vocab_size: Annotated[int, Range(260, 1 << 22)]
    sources: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    max_characters: Annotated[int, Range(1, 1 << 40)] = 10_000_000
    special: SpecialTokens = SPECIAL_TOKENS
    file: str | None = None

    def __post_init__(self) -> None:
        if self.file is None and self.vocab_size < (least := 256 + len(self.special.tokens)):
            raise ValueError(f"vocab_size is {self.vocab_size}; bytes and special tokens alone are {least}")


@dataclasses.dataclass(frozen=True)
class PreparationConfig:
    """Code that comes with a recipe and writes its data.

    Attributes:
        module: a Python file beside the recipe.
        options: what it is told; the module says what it takes.
        uses: folders whose modules it imports, relative to the recipe: `../nano` is its `..nano`.
    """

    module: _Module
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    uses: Annotated[tuple[_Neighbour, ...], Length(0, 64)] = ()

    def __post_init__(self) -> None:
        names = [PurePosixPath(folder).name for folder in self.uses]
        if len(set(names)) < len(names):
            raise ValueError("uses names two folders of one name, and code imports them by their names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run.

    Attributes:
        name: what the run is called.
        seed: what all randomness comes from.
        folder: the recipe's, which relative names start from.
        base: a checkpoint folder that is trained further; None for fresh weights.
        model: the model's sizes.
        tokenizer: the tokenizer to learn; None for the base's own.
        chat_template: a jinja template, as the bundle will have it.
        prepare: code that writes the data; None where the data are files already.
        stages: in the order in which they run.
        languages: of its data, for the report of a run.
        steps: what is done between them; those after one stage in the order in which they run.
    """

    name: str
    seed: int
    folder: Path
    base: Path | None
    model: ModelConfig
    tokenizer: TokenizerConfig | None
    chat_template: str
    prepare: PreparationConfig | None
    stages: tuple[StageConfig, ...]
    steps: tuple[StepConfig, ...] = ()
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            self._check_name("stage", stage.name, seen)
            if later := [name for name in stage.starts_from if name not in seen]:
                raise ConfigError(
                    f"stage {stage.name} starts from {', '.join(later)}, which no earlier stage provides"
                )
            seen.add(stage.name)
        stages = frozenset(seen)
        for step in self.steps:
            self._check_name("step", step.name, seen)
            if step.after is not None and step.after not in stages:
                raise ConfigError(f"step {step.name} comes after {step.after}, which is no stage")
            seen.add(step.name)
        self._check_order()
        check_chains(self.stages)

    @staticmethod
    def _check_name(kind: str, name: str, seen: set[str]) -> None:
        if name in _RESERVED:
            raise ConfigError(f"a {kind} is called {name}, as a folder of every run is; choose another name")
        if name in seen:
            raise ConfigError(f"two stages or steps are called {name}; give each a name of its own")

    def _check_order(self) -> None:
        """Refuses what reads a file that is made later, or by nobody."""
        made: set[str] = set()
        for part in self.in_order():
            for name in part.files():
                if (maker := step_of(name)) is not None and maker not in made:
                    raise ConfigError(f"{part.name} reads {name}, and no step {maker} comes before it")
            if isinstance(part, StepConfig):
                made.add(part.name)

    def in_order(self) -> Iterator[StageConfig | StepConfig]:
        """Stages and steps as they run."""
        yield from self.steps_after(None)
        for stage in self.stages:
            yield stage
            yield from self.steps_after(stage.name)

    def steps_after(self, stage: str | None) -> Iterator[StepConfig]:
        """The steps that follow a stage, or, for None, that come first."""
        return (step for step in self.steps if step.after == stage)

    def model_after(self, *stages: str) -> ModelConfig:
        """The model as it is with the weights of these stages; how positions turn is up to the last of them
        that changes it.
        """
        own = self.model.decoder.rope
        ropes = stage_ropes(own, self.stages)
        changed = [ropes[name] for name in stages if ropes[name] != own]
        return with_rope(self.model, changed[-1] if changed else own)


@dataclasses.dataclass(frozen=True)
class _Document:
    """The tables of the file; what is inside of those left open is read with more knowledge."""

    name: _Name
    stage: Annotated[tuple[Mapping[str, Any], ...], Length(1, 256)]
    step: Annotated[tuple[Mapping[str, Any], ...], Length(0, 256)] = ()
    seed: _Seed = 0
    languages: Annotated[tuple[str, ...], Length(0, 256)] = ()
    base: str | None = None
    chat_template: str | None = None
    model: Mapping[str, Any] | None = None
    tokenizer: TokenizerConfig | None = None
    prepare: PreparationConfig | None = None


@dataclasses.dataclass(frozen=True)
class _Model:
    """The table `model`: as ModelConfig, without the token ids."""

    decoder: DecoderConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    adapters: Mapping[str, AdapterConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        towers = {"vision": self.vision, "speech": self.audio}
        for name in self.adapters:
            if towers.get(name) is None:
                raise ConfigError(
                    f"adapters has {name!r:.80}; accepted: vision beside model.vision, speech beside "
                    "model.audio"
                )


def find_recipe(path: Path) -> Path:
    """The recipe's file: `path`, or recipe.toml in a folder of that name."""
    return path / RECIPE_NAME if path.is_dir() else path


def load_recipe(path: Path, scale: str | None = None) -> Recipe:
    """Read a recipe; `scale` names one of its `[scale.NAME]` tables, whose values replace the recipe's own.

    Raises:
        ConfigError: the file is missing, is no TOML, or holds unknown, missing or contradicting values.
    """
    path = find_recipe(path)
    raw, changes = _scaled(path, _parse(path), scale)
    document = read_dataclass(_Document, open_fields(raw, path))
    base = None if document.base is None else path.parent / document.base
    model = _trained_further(document, base) if base is not None else _fresh_model(path, raw, document)
    stages: dict[str, StageConfig] = {}
    for table in document.stage:
        stage = read_stage(path, table, changes, model, stages)
        if stage.name in stages:
            raise ConfigError(f"{path}: two stages are called {stage.name}; give each a name of its own")
        stages[stage.name] = stage
    ropes = stage_ropes(model.decoder.rope, stages.values())
    models: dict[str | None, ModelConfig] = {name: with_rope(model, rope) for name, rope in ropes.items()}
    models[None] = model
    recipe = Recipe(
        name=document.name if scale is None else f"{document.name}-{scale}",
        seed=document.seed,
        folder=path.parent,
        base=base,
        model=model,
        tokenizer=document.tokenizer,
        chat_template=_template(document, base),
        prepare=document.prepare,
        languages=document.languages,
        stages=tuple(stages.values()),
        steps=tuple(read_step(path, table, changes, models) for table in document.step),
    )
    _check_template(path, recipe.chat_template)
    try:
        check_warmups(recipe.stages)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if unknown := [name for name in changes.part if name not in {one.name for one in recipe.in_order()}]:
        raise ConfigError(f"{path}: scale {scale} changes part {unknown[0]!r:.80}, which is no stage or step")
    return recipe


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot read the recipe {path}: {reason}; name a TOML file, or its folder"
        ) from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES} bytes; {REMEDY}")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError among them
        single = _SINGLE_TABLE.search(content)
        name = "" if single is None else single[1].decode()
        remedy = f"write [[{name}]] above each {name}" if name else REMEDY
        raise ConfigError(f"{path} is not valid TOML: {error}; {remedy}") from error


def _scaled(path: Path, raw: dict[str, Any], scale: str | None) -> tuple[dict[str, Any], Scale]:
    """The recipe's tables with those of the scale in place, and what it changes in stages."""
    for name in ("stage", "step"):
        if isinstance(raw.get(name), dict):
            raise ConfigError(f"{path}: {name!r} is one table, expected a list of them; write [[{name}]]")
    scales = open_fields({"scale": raw.pop("scale", {})}, path).mapping("scale")
    if scale is not None and scale not in scales:
        raise ConfigError(f"{path} has no scale {scale!r}; it has: {', '.join(sorted(scales)) or 'none'}")
    read = {name: read_dataclass(Scale, fields) for name, fields in scales.items()}
    changes = read[scale] if scale is not None else Scale()
    tables = {"model": changes.model, "tokenizer": changes.tokenizer, "prepare": changes.prepare}
    return merged(raw, {name: table for name, table in tables.items() if table}), changes


def _fresh_model(path: Path, raw: Mapping[str, Any], document: _Document) -> ModelConfig:
    """A model of the recipe's own sizes."""
    for name, table in (("model", document.model), ("tokenizer", document.tokenizer)):
        if table is None:
            raise ConfigError(f"{path} has no table {name}; give it, or name a checkpoint as 'base'")
    assert document.model is not None and document.tokenizer is not None
    fields = open_fields(raw, path).child("model")
    tables = merged(document.model, {})
    if fields.has("decoder"):
        tables["decoder"] = _with_rope(fields.child("decoder"), document.model["decoder"])
    sizes = read_dataclass(_Model, open_fields(tables, path, "model"))
    vocabulary = document.tokenizer.vocab_size
    if vocabulary != sizes.decoder.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer learns {vocabulary} tokens, the decoder has {sizes.decoder.vocab_size}; "
            "give both the same vocab_size"
        )
    special = document.tokenizer.special
    id_of: Callable[[str], int] = special.id_of
    if document.tokenizer.file is not None:
        given = given_tokenizer(find_outside(document.tokenizer.file, path.parent))
        id_of = ids_of(given, vocabulary)
    tokens = TokenConfig(
        bos=id_of(special.bos),
        pad=id_of(special.pad),
        eos=tuple(id_of(name) for name in special.eos),
        image=id_of(special.image) if sizes.vision else None,
        audio=id_of(special.audio) if sizes.audio else None,
    )
    return ModelConfig(sizes.decoder, tokens, sizes.vision, sizes.audio, sizes.adapters)


def _with_rope(fields: Fields, decoder: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's table with rotary factors of one where it has none."""
    if not fields.has("rope"):
        return decoder
    rope = fields.child("rope")
    ones = [1.0] * (rope.integer("rotary_dim", 2, 1 << 16) // 2)
    given = decoder["rope"]
    return {**decoder, "rope": {"short_factor": ones, "long_factor": ones, **given}}


def _trained_further(document: _Document, base: Path) -> ModelConfig:
    """The sizes of the checkpoint that the recipe starts from."""
    given = [name for name in ("model", "tokenizer") if getattr(document, name) is not None]
    if given:
        raise ConfigError(
            f"the recipe has a base and a table {given[0]}, and a base brings its own; leave one of them out"
        )
    return Checkpoint(base).config


def _template(document: _Document, base: Path | None) -> str:
    if document.chat_template is not None:
        return document.chat_template
    return CHAT_TEMPLATE if base is None else read_template(base)


def _check_template(path: Path, template: str) -> None:
    """Refuses what is no jinja; what it makes of conversations shows when they are encoded."""
    try:
        jinja2.sandbox.ImmutableSandboxedEnvironment().parse(template)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ConfigError(f"{path}: 'chat_template' is no jinja template: {error}; {REMEDY}") from error
