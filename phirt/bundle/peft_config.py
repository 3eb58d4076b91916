"""What PEFT's `adapter_config.json` says about a LoRA adapter: ranks, scales, and which modules it changes.

Knows PEFT's settings and how it looks modules up in them. Knows nothing of weights. The file is taken for
hostile. What it asks for beyond adding scale · B A is refused, and so is what is not known here: an adapter
does all that it was trained to do, or is not loaded. Patterns that could take forever to match are not
matched.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from phirt.errors import AdapterError
from phirt.fields import Fields, Length, Range, parse_json, read_dataclass

CONFIG_NAME = "adapter_config.json"
MAX_RANK = 1 << 14
FUSE = "fuse it into the checkpoint with PEFT's merge_and_unload, save that, and export it"
REMEDY = "name a folder that PEFT's save_pretrained has written"

_MAX_BYTES = 4 << 20
_LONGEST_KEY = 48  # of a module's name, in characters
_MOST_WAYS = 100_000
_LONGEST_PATTERN = 1000

# Settings that do not change what a trained adapter computes.
_HARMLESS = frozenset(
    {
        "auto_mapping", "corda_config", "eva_config",
        "fan_in_fan_out", "inference_mode", "layers_pattern", "loftq_config", "lora_dropout",
        "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size",
        "runtime_config", "task_type",
    }
)  # fmt: skip
# Settings that do, and what they ask for.
_REFUSED = {
    "alora_invocation_tokens": "it becomes active at certain tokens only (aLoRA)",
    "arrow_config": "it mixes several adapters (Arrow)",
    "bias": "it changes biases",
    "kasa_config": "it changes the base weights (KaSA)",
    "layer_replication": "it repeats layers of the model",
    "lora_bias": "its matrices have biases (lora_bias)",
    "modules_to_save": "it replaces whole modules (modules_to_save)",
    "target_parameters": "it changes parameters that are no linear layers (target_parameters)",
    "trainable_token_indices": "it changes embeddings of tokens (trainable_token_indices)",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "use_dora": "it scales the columns of the weights (DoRA)",
    "use_qalora": "it pools its inputs (QALoRA)",
}
_NEUTRAL: tuple[Any, ...] = (None, False, "", "none", 0, [], {})
# Ways to begin a training that leave the base weights as they are; the others move a part of them into the
# adapter.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


class _Patterns:
    """A setting that gives numbers to modules by patterns, of which the first that a module's name ends in
    counts, as PEFT looks it up.
    """

    def __init__(self, setting: str, values: Mapping[str, float]) -> None:
        if sum(map(_cost, values)) > _MOST_WAYS:
            raise ValueError(
                f"{setting} has keys that are no simple patterns, accepted: modules' names as they are, such "
                "as 'layers.0.mlp.down_proj'"
            )
        self._values = [
            (_compiled(rf"(.*\.)?({pattern})$", setting), value) for pattern, value in values.items()
        ]

    def first(self, key: str, default: float) -> float:
        """The number of the module `key`."""
        return next((value for pattern, value in self._values if pattern.match(key)), default)


_FEW = Length(0, 1 << 12)
_Alpha = Annotated[float, Range(-1e9, 1e9)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What of `adapter_config.json` decides the arithmetic."""

    peft_type: str
    r: Annotated[int, Range(1, MAX_RANK)] = 8
    lora_alpha: _Alpha = 8.0
    use_rslora: bool | None = None
    rank_pattern: Annotated[Mapping[str, Annotated[int, Range(1, MAX_RANK)]], _FEW] | None = None
    alpha_pattern: Annotated[Mapping[str, _Alpha], _FEW] | None = None
    target_modules: str | Annotated[tuple[str, ...], _FEW] | None = None
    exclude_modules: str | Annotated[tuple[str, ...], _FEW] | None = None
    layers_to_transform: int | Annotated[tuple[int, ...], _FEW] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    ensure_weight_tying: bool | None = None

    def __post_init__(self) -> None:
        """Refuses patterns that cannot be compiled."""
        assert self._ranks and self._alphas
        for setting in ("target_modules", "exclude_modules"):
            if isinstance(pattern := getattr(self, setting), str) and len(pattern) <= _LONGEST_PATTERN:
                _compiled(pattern, setting)

    @functools.cached_property
    def _ranks(self) -> _Patterns:
        return _Patterns("rank_pattern", self.rank_pattern or {})

    @functools.cached_property
    def _alphas(self) -> _Patterns:
        return _Patterns("alpha_pattern", self.alpha_pattern or {})

    def rank(self, key: str) -> int:
        """The rank of the module `key`."""
        return int(self._ranks.first(key, self.r))

    def scale(self, key: str) -> float:
        """What B A is multiplied by."""
        rank = self.rank(key)
        return self._alphas.first(key, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def read_settings(
    folder: Path, honoured: Collection[str] = (), how: str = "be added at run time"
) -> Settings:
    """The settings of the adapter in `folder`; the caller sees to what is in `honoured`, `how` says what the
    others beyond plain LoRA cannot. Raises AdapterError.
    """
    if not folder.is_dir():
        raise AdapterError(f"{folder} is no folder; {REMEDY}")
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterError(f"{folder} holds no {CONFIG_NAME}; {REMEDY}")
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}; {REMEDY}") from error
    if len(raw) > _MAX_BYTES:
        raise AdapterError(f"{path} is larger than {_MAX_BYTES} bytes; {REMEDY}")
    document = parse_json(raw, str(path), AdapterError, REMEDY)
    fields = Fields(document, str(path), AdapterError, REMEDY)
    if (kind := fields.text("peft_type")) != "LORA":
        raise AdapterError(f"{path}: peft_type is {kind[:80]!r}, accepted: LORA; {FUSE}")
    assert isinstance(document, dict)
    _check_honoured(path, document, honoured, how)
    return read_dataclass(Settings, fields)


def _check_honoured(path: Path, document: Mapping[str, Any], honoured: Collection[str], how: str) -> None:
    """Refuses settings that ask for more than a product of two matrices."""
    for key, meaning in _REFUSED.items():
        if document.get(key) not in _NEUTRAL and key not in honoured:
            raise AdapterError(f"{path}: {meaning}, which cannot {how}; {FUSE}")
    start = document.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        raise AdapterError(
            f"{path}: init_lora_weights is {start!r:.80}, which changes the base weights; save it as plain "
            "LoRA with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    known = {field.name for field in dataclasses.fields(Settings)}
    known |= _HARMLESS | _REFUSED.keys() | {"init_lora_weights"}
    for key, value in document.items():
        if key not in known and value not in _NEUTRAL:
            raise AdapterError(
                f"{path}: the setting {key[:80]!r} is not known here and may change the result; {FUSE}"
            )


def endings(name: str) -> list[str]:
    """ "a.b.c", "b.c" and "c"."""
    words = name.split(".")
    return [".".join(words[i:]) for i in range(len(words))]


def names(modules: str | tuple[str, ...] | None, key: str) -> bool | None:
    """Whether a setting names the module `key`, as PEFT decides it; None where it names no modules, or does
    so by a pattern that could take forever.
    """
    if modules is None or (isinstance(modules, str) and modules.lower() == "all-linear"):
        return None
    if isinstance(modules, tuple):
        return not set(modules).isdisjoint(endings(key))
    if _cost(modules) > _MOST_WAYS:
        return None
    pattern = _compiled(modules, "target_modules")
    # What was trained without a head, and loaded into a model with one, has patterns without its prefix.
    return any(pattern.fullmatch(name) for name in (key, key.removeprefix("model.")))


def _compiled(pattern: str, setting: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{setting} holds {pattern[:80]!r}, no regular expression: {error}") from error


def _cost(pattern: str) -> float:
    """In how many ways at most a name of a module may be tried against a pattern: where it repeats it may
    stop anywhere, where something is optional there are two, and repeated groups have no bound.
    """
    if len(pattern) > _LONGEST_PATTERN or re.search(r"\)[*+{]", pattern):
        return math.inf
    repeats = len(re.findall(r"[*+{]", pattern))
    optional = len(re.findall(r"(?<![(*+}?])\?", pattern))
    return float(math.comb(_LONGEST_KEY + repeats, repeats) * 2**optional)
