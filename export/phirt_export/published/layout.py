"""What a layout is: a configuration, and for every tensor of the reference model the published ones that make
it up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from phirt.fields import Fields
from phirt_export.encoders import EncoderPlan
from phirt_export.reference.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """A published tensor, all of a reference tensor (`rows` None) or that many consecutive rows of it."""

    name: str
    rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """What a family's module reads: the folder, its config.json, and the shapes of the stored tensors."""

    folder: Path
    config: Fields
    shapes: Mapping[str, tuple[int, ...]]


def _same(name: str) -> tuple[Part, ...]:
    return (Part(name),)


def _nothing(name: str) -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one checkpoint is read.

    `parts` gives, for a tensor of the reference model, the published tensors whose rows follow each other in
    it; `ignores` says which published tensors no computation needs. Tensors of `adapter_files` (a folder's
    name to its file) are published as `folder/name`. `encoders` are plans for encoders that are none of the
    reference model's towers; None where those are all.
    """

    config: ModelConfig
    parts: Callable[[str], tuple[Part, ...]] = _same
    ignores: Callable[[str], bool] = _nothing
    adapter_files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    encoders: tuple[EncoderPlan, ...] | None = None
