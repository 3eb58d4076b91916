"""The file of `phirt curate`: sources, rules, duplicates, evaluation sets, classifier and mixture, in TOML.

Knows the file's tables and checks them once. Knows nothing of how they are carried out.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, Matching, Range, read_dataclass
from phirt_train.curate.classifier import TrainingOptions
from phirt_train.curate.decontamination import DecontaminationConfig
from phirt_train.curate.minhash import MinHashConfig
from phirt_train.curate.mixture import LONG_SUFFIX, MixtureConfig
from phirt_train.curate.quality import QualityConfig

_REMEDY = "correct the file"
_MAX_BYTES = 1 << 20
_RESERVED = ("classifier", "dropped", "work")  # folders of every result
_Name = Annotated[str, Matching("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, . - and _")]
_Files = Annotated[tuple[str, ...], Length(1, 4096)]
_Template = Annotated[str, Length(1, 4096)]
MadeNegatives = Literal["packages", "standard_library", "corruptions"]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Data of one kind.

    Attributes:
        name: what mixtures and reports call it.
        files: names or patterns, from the data's folder.
        template: a record's text, names of its fields in braces.
        quality: what is kept.
    """

    name: _Name
    files: _Files
    template: _Template = "{text}"
    quality: QualityConfig = dataclasses.field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        if self.name in _RESERVED or self.name.endswith(LONG_SUFFIX):
            raise ValueError(
                f"a source cannot be called {self.name}, as a folder of the result is; rename it"
            )
        _check_template(self.template)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """An evaluation set that must not be in the data."""

    name: _Name
    files: _Files
    template: _Template = "{text}"

    def __post_init__(self) -> None:
        _check_template(self.template)


@dataclasses.dataclass(frozen=True)
class DuplicatesConfig:
    """Which repetitions go: whole documents, paragraphs, near duplicates; None of `near` for none."""

    documents: bool = True
    paragraphs: bool = True
    near: MinHashConfig | None = dataclasses.field(default_factory=MinHashConfig)


@dataclasses.dataclass(frozen=True)
class ExamplesConfig:
    """Texts that the classifier learns from."""

    files: _Files
    template: _Template = "{text}"

    def __post_init__(self) -> None:
        _check_template(self.template)


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The quality classifier: trained here, or taken from a folder.

    Attributes:
        folder: of one that is trained already, from the data's folder.
        positive, negative: what to train it on.
        made: kinds of bad texts that are made on this machine.
        keep: the share of each source's documents that stays, the best by score.
        sources: those whose documents are chosen so; empty for all.
        training: how.
    """

    folder: str | None = None
    positive: Annotated[tuple[ExamplesConfig, ...], Length(0, 256)] = ()
    negative: Annotated[tuple[ExamplesConfig, ...], Length(0, 256)] = ()
    made: Annotated[tuple[MadeNegatives, ...], Length(0, 3)] = ()
    keep: Annotated[float, Range(0.001, 1)] = 0.5
    sources: Annotated[tuple[str, ...], Length(0, 4096)] = ()
    training: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        trains = bool(self.positive and (self.negative or self.made))
        if (self.folder is None) != trains:
            raise ValueError(
                "a classifier is either taken from a 'folder' or trained on 'positive' and 'negative' (or "
                "'made') texts; give one of both"
            )


@dataclasses.dataclass(frozen=True)
class LengthConfig:
    """Lengths in tokens: what is shorter or longer is dropped, and what has at least `long_from` goes to a
    source of its own, NAME.long, which the mixture may weigh up.
    """

    least: Annotated[int, Range(0, 1 << 40)] = 0
    most: Annotated[int, Range(1, 1 << 40)] = 1 << 40
    long_from: Annotated[int, Range(1, 1 << 40)] | None = None


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """The whole file.

    Attributes:
        source: the data, those first whose copy is to stay where two sources hold the same.
        tokenizer: a tokenizer.json that counts tokens; without one, four bytes count as a token.
        shard_megabytes: of unpacked text that a task takes.
    """

    source: Annotated[tuple[SourceConfig, ...], Length(1, 4096)]
    tokenizer: str | None = None
    shard_megabytes: Annotated[float, Range(0.001, 1 << 14)] = 16.0
    duplicates: DuplicatesConfig = dataclasses.field(default_factory=DuplicatesConfig)
    evaluation: Annotated[tuple[EvaluationConfig, ...], Length(0, 1024)] = ()
    decontamination: DecontaminationConfig = dataclasses.field(default_factory=DecontaminationConfig)
    classifier: ClassifierConfig | None = None
    length: LengthConfig = dataclasses.field(default_factory=LengthConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)

    def __post_init__(self) -> None:
        names = [one.name for one in self.source]
        _once("source", names)
        _once("evaluation set", [one.name for one in self.evaluation])
        chosen = self.classifier.sources if self.classifier else ()
        for name in (*chosen, *self.mixture.shares, *self.mixture.epochs):
            if name not in names:
                raise ValueError(f"{name!r} is no source, accepted: {', '.join(names)}")


def load_config(path: Path) -> CurationConfig:
    """Reads the file.

    Raises:
        ConfigError: it cannot be read, or something in it is not as it must be.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ConfigError(f"{path} has more than {_MAX_BYTES} bytes, which no such file needs; {_REMEDY}")
        value = tomllib.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name a TOML file") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML: {error}; {_REMEDY}") from error
    return read_dataclass(CurationConfig, Fields(value, str(path), ConfigError, _REMEDY, closed=True))


def find_files(folder: Path, patterns: Sequence[str], what: str) -> list[Path]:
    """The files that the names and patterns stand for, sorted within a pattern.

    Raises:
        ConfigError: one stands for none.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_absolute():
            matches = [path] if path.is_file() else []
        else:
            matches = sorted(one for one in folder.glob(pattern) if one.is_file())
        if not matches:
            raise ConfigError(
                f"{what} names {pattern}, and {folder} holds no such file; give --data its folder"
            )
        found += [one for one in matches if one not in found]
    return found


def _check_template(template: str) -> None:
    if not re.search(r"\{\w+\}", template):
        raise ValueError(f"the template {template!r} names no field in braces, as '{{text}}' does")


def _once(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two of kind {kind} are called {name}; give each a name of its own")
