"""Published weights with a PEFT adapter in them, row by row, so that memory stays bounded.

Knows PEFT's names of tensors, and the arithmetic of LoRA, DoRA, biases and modules that are saved whole, in
float32. Knows nothing of folders, nor of what the weights mean to a model. Sources: LoRA (arXiv 2106.09685),
rsLoRA (2312.03732), DoRA (2402.09353), and the checkpoint format in PEFT's documentation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from phirt.bundle.peft import WEIGHTS_NAME
from phirt.bundle.peft_config import CONFIG_NAME, FUSE, REMEDY, Settings
from phirt.bundle.tensor_file import DTYPES, StoredTensor, Values, open_file
from phirt.errors import AdapterError
from phirt_export.containers import PublishedTensor
from phirt_export.published.decoder import EMBEDDING, HEAD

_TENSOR = re.compile(
    r"base_model\.model\.(?P<key>[\w.]{1,200}?)\."
    r"(?:(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(?:weight|(?P<bias>bias)))?"
    r"|(?P<whole>weight|bias))"
)


@dataclasses.dataclass(frozen=True)
class Merged:
    """base + up · down, row by row; with `magnitude`, each row is scaled to that length afterwards (DoRA)."""

    name: str
    base: PublishedTensor
    down: Values
    up: Values
    magnitude: Values | None = None
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the base."""
        return self.base.shape

    def rows(self, start: int, stop: int) -> Values:
        """Rows start..stop-1 along the first axis."""
        merged = self.base.rows(start, stop) + self.up[start:stop] @ self.down
        if self.magnitude is not None:
            lengths = np.linalg.norm(merged, axis=1)
            if not lengths.all():
                raise AdapterError(f"{self.name} has a row of zeros, which DoRA cannot scale; {FUSE}")
            merged *= (self.magnitude[start:stop] / lengths)[:, None]
        return merged

    def tensor(self) -> Values:
        """All of it."""
        return self.rows(0, self.shape[0])


@dataclasses.dataclass(frozen=True)
class _Given:
    """A small tensor, computed already."""

    values: Values
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self.values.shape

    def rows(self, start: int, stop: int) -> Values:
        """Rows start..stop-1 along the first axis."""
        return self.values[start:stop]

    def tensor(self) -> Values:
        """All of it."""
        return self.values


def merged_tensors(
    path: Path, settings: Settings, base: Mapping[str, PublishedTensor]
) -> dict[str, PublishedTensor]:
    """The base's tensors that the adapter changes, as they are with it."""
    if not path.is_file():
        raise AdapterError(f"{path.parent} holds no {WEIGHTS_NAME}; {REMEDY}")
    stored = open_file(path, AdapterError, REMEDY)
    changed: dict[str, PublishedTensor] = {}
    pieces: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterError(f"{path}: {name[:160]} is not known here and may change the result; {FUSE}")
        if tensor.dtype not in DTYPES:
            raise AdapterError(
                f"{path}: {name} is of type {tensor.dtype[:80]}, accepted: {', '.join(DTYPES)}"
            )
        key = match["key"].replace(".modules_to_save.default", "").replace(".base_layer", "")
        if match["whole"]:
            changed[_published(path, key, match["whole"], base)] = tensor
        else:
            part = match["part"] + (".bias" if match["bias"] else "")
            pieces.setdefault(key, {})[part] = tensor
    if not stored:
        raise AdapterError(f"{path} holds no weights; {REMEDY}")
    for key, parts in pieces.items():
        changed |= _merged(path, key, parts, settings, {**base, **changed})
    return changed


def _published(path: Path, key: str, suffix: str, base: Mapping[str, PublishedTensor]) -> str:
    """The published name of a module's tensor. Where the base's head is its table, an adapter may have a head
    of its own.
    """
    names = (f"{key}.{suffix}", f"{key}.base_layer.{suffix}", f"model.{key}.{suffix}")
    for name in names:
        if name in base:
            return name
    if names[0] == HEAD and EMBEDDING in base:
        return HEAD
    raise AdapterError(
        f"{path} changes {key}.{suffix}, and its base has none: the adapter belongs to another model; name "
        "its own with --base"
    )


def _merged(
    path: Path,
    key: str,
    parts: Mapping[str, StoredTensor],
    settings: Settings,
    base: Mapping[str, PublishedTensor],
) -> dict[str, PublishedTensor]:
    """A module's weight, and its bias where that is changed too."""
    name = _published(path, key, "weight", base)
    weight = base[name] if name in base else base[EMBEDDING]
    down, up = _matrices(path, key, parts, settings, weight.shape)
    magnitude = None
    if (stored := parts.get("lora_magnitude_vector")) is not None:
        if "lora_embedding_A" in parts:
            raise AdapterError(f"{path}: {key} is an embedding under DoRA, which cannot be merged; {FUSE}")
        magnitude = _finite(path, key, stored.tensor()).reshape(-1)
        if magnitude.shape != weight.shape[:1]:
            raise _misshapen(path, key, stored.shape, weight.shape)
    merged: dict[str, PublishedTensor] = {name: Merged(key, weight, down, up, magnitude)}
    if (bias := parts.get("lora_B.bias")) is not None:
        place = _published(path, key, "bias", base)
        if bias.shape != weight.shape[:1]:
            raise _misshapen(path, key, bias.shape, weight.shape)
        scaled = bias.tensor() * np.float32(settings.scale(key))
        merged[place] = _Given(_finite(path, key, base[place].tensor() + scaled))
    return merged


def _matrices(
    path: Path,
    key: str,
    parts: Mapping[str, StoredTensor],
    settings: Settings,
    shape: tuple[int, ...],
) -> tuple[Values, Values]:
    """[rank, inputs] and [outputs, rank], scaled, of a weight of this shape."""
    embeds = "lora_embedding_A" in parts
    first, second = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A", "lora_B")
    if missing := {first, second} - parts.keys():
        raise AdapterError(f"{path}: {key} has no {missing.pop()}; fetch the adapter again")
    a, b = parts[first].tensor(), parts[second].tensor()
    if a.ndim != 2 or b.ndim != 2 or len(shape) != 2:
        raise _misshapen(path, key, a.shape, shape)
    down, up = (b.T, a.T) if embeds else (a, b)  # a table is looked up by rows: its inputs are its rows
    if down.shape[0] != up.shape[1] or (up.shape[0], down.shape[1]) != shape:
        raise _misshapen(path, key, (up.shape[0], down.shape[1]), shape)
    if down.shape[0] != settings.rank(key):
        raise AdapterError(
            f"{path}: {key} has rank {down.shape[0]}, and {settings.rank(key)} in {CONFIG_NAME}; fetch both "
            "files of one adapter"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = up * np.float32(settings.scale(key))
    return _finite(path, key, down), _finite(path, key, scaled)


def _finite(path: Path, key: str, values: Values) -> Values:
    if not np.isfinite(values).all():
        raise AdapterError(
            f"{path}: {key} holds values that are no finite numbers; the training has failed, or the file is "
            "damaged"
        )
    return values


def _misshapen(path: Path, key: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> AdapterError:
    return AdapterError(
        f"{path}: {key} is for {list(found)} and the base's weight is {list(wanted)}: the adapter belongs to "
        "another model; name its own with --base"
    )
