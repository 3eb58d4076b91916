"""A LoRA adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors` in a folder.

Knows PEFT's names of tensors, and how matrices of separate projections become those of a fused one. Knows
nothing of graphs; what the settings mean is `peft_config`'s matter. The weights say which modules an adapter
changes: the file is taken for hostile, and whatever is no LoRA of a decoder's projection is refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from phirt.bundle.lora import Branch, DecoderSizes, Lora, Projection, projections
from phirt.bundle.peft_config import (
    CONFIG_NAME,
    FUSE,
    MAX_RANK,
    REMEDY,
    Settings,
    endings,
    names,
    read_settings,
)
from phirt.bundle.tensor_file import DTYPES, StoredTensor, open_file
from phirt.errors import AdapterError

WEIGHTS_NAME = "adapter_model.safetensors"

_MAX_BYTES = 8 << 30  # of all matrices in float32
_TENSOR = re.compile(
    r"base_model\.model\.(?P<key>(?:model\.)?layers\.(?P<layer>[0-9]{1,6})\.(?P<module>[\w.]+))"
    r"\.lora_(?P<part>[AB])\.weight"
)
_ACCEPTED = (
    "qkv_proj, q_proj, k_proj, v_proj, o_proj, gate_up_proj, gate_proj, up_proj and down_proj of the decoder"
)
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class _Module:
    """One adapted module: `key` as PEFT's settings name it, its place, and its matrices A and B."""

    key: str
    layer: int
    projection: Projection
    rows: range
    a: StoredTensor
    b: StoredTensor


def read_lora(folder: str | Path, sizes: DecoderSizes) -> Lora:
    """The adapter in `folder`, for a decoder of these sizes. Raises AdapterError."""
    folder = Path(folder)
    settings = read_settings(folder)
    modules = _read_modules(folder, sizes)
    _check_targets(folder, settings, modules, sizes)
    needed = sum(4 * (math.prod(m.a.shape) + m.a.shape[0] * m.projection.outputs) for m in modules)
    if needed > _MAX_BYTES:
        raise AdapterError(
            f"{folder}: its matrices take {needed / 1e9:.1f} GB in float32, accepted: "
            f"{_MAX_BYTES / 1e9:.1f} GB; {FUSE}"
        )
    together: dict[tuple[int, str], list[_Module]] = {}
    for module in modules:
        together.setdefault((module.layer, module.projection.name), []).append(module)
    return Lora({place: _branch(folder, settings, parts) for place, parts in together.items()})


def _read_modules(folder: Path, sizes: DecoderSizes) -> list[_Module]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        pickled = (folder / WEIGHTS_NAME.replace(".safetensors", ".bin")).is_file()
        why = " but a pickled one, which can run code when opened" if pickled else ""
        raise AdapterError(
            f"{folder} holds no {WEIGHTS_NAME}{why}; save the adapter with PEFT's save_pretrained, which "
            "writes safetensors"
        )
    stored = open_file(path, AdapterError, REMEDY)
    matched = {name: _TENSOR.fullmatch(name) for name in stored}
    places = _places(sizes)
    refused = [name for name, match in matched.items() if not match or match["module"] not in places]
    if refused:
        raise AdapterError(f"{path}: {_why_refused(refused)}")
    if not stored:
        raise AdapterError(f"{path} holds no LoRA weights; {REMEDY}")
    found: dict[str, tuple[int, str]] = {}
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for name, match in matched.items():
        assert match is not None
        found[match["key"]] = (int(match["layer"]), match["module"])
        pairs.setdefault(match["key"], {})[match["part"]] = stored[name]
    modules = [
        _module(path, key, layer, *places[module], pairs[key], sizes)
        for key, (layer, module) in found.items()
    ]
    return sorted(modules, key=lambda module: (module.layer, module.rows.start))


def _places(sizes: DecoderSizes) -> dict[str, tuple[Projection, range]]:
    """Every module of a layer that can be adapted: its projection, and its rows of that."""
    places = {}
    for projection in projections(sizes):
        places[projection.module] = (projection, range(projection.outputs))
        first = 0
        for name, count in projection.parts.items():
            module = f"{projection.module.rpartition('.')[0]}.{name}"
            places[module] = (projection, range(first, first + count))
            first += count
    return places


def _module(
    path: Path,
    key: str,
    layer: int,
    projection: Projection,
    rows: range,
    pair: Mapping[str, StoredTensor],
    sizes: DecoderSizes,
) -> _Module:
    """A module whose two matrices are there, of the right shapes and of a type that is read."""
    if missing := {"A", "B"} - pair.keys():
        raise AdapterError(f"{path}: {key} has no lora_{missing.pop()}; fetch the adapter again")
    if layer >= sizes.num_layers:
        raise AdapterError(
            f"{path}: {key} is layer {layer}, and the bundle has {sizes.num_layers}: the adapter belongs to "
            "another base model; use the bundle that it was trained for"
        )
    a, b = pair["A"], pair["B"]
    for part, tensor in pair.items():
        if tensor.dtype not in DTYPES:
            raise AdapterError(
                f"{path}: lora_{part} of {key} is of type {tensor.dtype[:80]}, accepted: "
                f"{', '.join(DTYPES)}; save the adapter in one of these"
            )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not 0 < a.shape[0] <= MAX_RANK:
        raise AdapterError(
            f"{path}: {key} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, accepted: [rank, inputs] "
            f"and [outputs, rank] with a rank from 1 to {MAX_RANK}; fetch the adapter again"
        )
    if (a.shape[1], b.shape[0]) != (projection.inputs, len(rows)):
        raise AdapterError(
            f"{path}: {key} is for {a.shape[1]} inputs and {b.shape[0]} outputs, and the bundle's has "
            f"{projection.inputs} and {len(rows)}: the adapter belongs to another base model; use the bundle "
            "that it was trained for"
        )
    return _Module(key, layer, projection, rows, a, b)


def _why_refused(names: Sequence[str]) -> str:
    """What tensors ask for that are no LoRA matrices of a decoder's projection."""
    reasons = {
        "lora_magnitude_vector": "it scales the columns of the weights (DoRA)",
        "lora_embedding": "it changes embeddings",
        "lora_B.bias": "its matrices have biases (lora_bias)",
        "lm_head": "it changes the output head",
        "embed_tokens.": "it changes embeddings",
        "embed_tokens_extend": "it changes encoders of images or audio",
        "vision": "it changes encoders of images or audio",
        "audio": "it changes encoders of images or audio",
        "visual": "it changes encoders of images or audio",
        "encoder": "it changes encoders of images or audio",
        "modules_to_save": "it replaces whole modules (modules_to_save)",
        ".bias": "it changes biases",
    }
    shown = ", ".join(name[:120] for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    for part, meaning in reasons.items():
        if any(part in name for name in names):
            return f"{meaning}, which cannot be added at run time: {shown}{more}; {FUSE}"
    return f"it changes modules that are not known here: {shown}{more}; accepted: {_ACCEPTED}; {FUSE}"


def _check_targets(folder: Path, settings: Settings, modules: Sequence[_Module], sizes: DecoderSizes) -> None:
    """Settings and weights must tell of the same modules."""
    path, targets = folder / CONFIG_NAME, settings.target_modules
    if isinstance(targets, tuple):
        there = {ending for module in _places(sizes) for ending in endings(f"model.layers.0.{module}")}
        unknown = [target for target in targets if re.sub(r"\d+", "0", target) not in there]
        if unknown:
            raise AdapterError(
                f"{path}: target_modules names {unknown[0][:80]!r}, accepted: {_ACCEPTED}; {FUSE}"
            )
    layers = settings.layers_to_transform
    layers = (layers,) if isinstance(layers, int) else layers
    for module in modules:
        named = names(targets, module.key) is not False
        if layers and isinstance(targets, tuple):
            named = named and module.layer in layers
        if not named or names(settings.exclude_modules, module.key) is True:
            raise AdapterError(
                f"{folder}: {WEIGHTS_NAME} has weights for {module.key}, which {CONFIG_NAME} leaves out; "
                "fetch both files of one adapter"
            )
        if module.a.shape[0] != settings.rank(module.key):
            raise AdapterError(
                f"{folder}: {module.key} has rank {module.a.shape[0]} in {WEIGHTS_NAME} and "
                f"{settings.rank(module.key)} in {CONFIG_NAME}; fetch both files of one adapter"
            )


def _branch(folder: Path, settings: Settings, modules: Sequence[_Module]) -> Branch:
    """The branch of one projection. Where its parts are adapted one by one, their A stand side by side, and
    each B fills its own columns.
    """
    projection = modules[0].projection
    rows = [module.rows.start for module in modules]
    if len(set(rows)) < len(rows) or sum(len(module.rows) for module in modules) > projection.outputs:
        raise AdapterError(
            f"{folder / WEIGHTS_NAME}: {projection.name} of layer {modules[0].layer} is changed more than "
            f"once, as a whole or in parts; {REMEDY}"
        )
    rank = sum(module.a.shape[0] for module in modules)
    a = np.empty((projection.inputs, rank), np.float32)
    b = np.zeros((rank, projection.outputs), np.float32)
    start = 0
    for module in modules:
        stop = start + module.a.shape[0]
        a[:, start:stop] = module.a.tensor().T
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            scaled = module.b.tensor() * np.float32(settings.scale(module.key))
        b[start:stop, module.rows.start : module.rows.stop] = scaled.T
        if not (np.isfinite(a[:, start:stop]).all() and np.isfinite(scaled).all()):
            raise AdapterError(
                f"{folder / WEIGHTS_NAME}: the matrices of {module.key} hold values that are no finite "
                "numbers; the training has failed, or the file is damaged"
            )
        start = stop
    return Branch(a, b)
