"""Which checkpoints go through optimum, and what they are: a text decoder, or an encoder with its pooling.

Knows config.json's `architectures`, and the files that sentence-transformers puts beside weights. Knows
nothing of graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json
from phirt_export.containers import read_json
from phirt_export.families import known_families, read_document

MODULES_NAME = "modules.json"
_PROMPTS_NAME, _LENGTH_NAME = "config_sentence_transformers.json", "sentence_bert_config.json"
_DECODERS, _ENCODERS = ("ForCausalLM", "LMHeadModel"), ("Model", "ForMaskedLM", "EncoderModel")
_REMEDY = "fetch the checkpoint again"
_MAX_MODULES_BYTES = 1 << 16
_MAX_LENGTH = 1 << 24
# What sentence-transformers calls ways of pooling, in the order in which several are joined.
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_KEYS = {
    "cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SentenceOptions:
    """What makes a text's vector of its tokens': ways of pooling that are joined, whether it is scaled to
    length 1, how many tokens are looked at (None: as many as the model can), and what may stand before a
    text. `stated` says whether the checkpoint has files that say so.
    """

    poolings: tuple[str, ...]
    normalized: bool
    max_tokens: int | None
    prompts: Mapping[str, str]
    stated: bool


def is_for_optimum(folder: Path) -> bool:
    """Whether phirt itself does not build the model in a folder: another family, or an embedding model."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / MODULES_NAME).is_file():
        return True
    document = read_document(folder)
    family = document.raw("model_type")
    return isinstance(family, str) and family not in known_families()


def is_decoder(folder: Path) -> bool:
    """Whether the model answers; False for one that makes vectors.

    Raises:
        ConfigError: it is neither.
    """
    if (folder / MODULES_NAME).is_file():
        return False
    document = read_document(folder)
    named = document.raw("architectures")
    name = named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else ""
    if name.endswith(_DECODERS):
        return True
    if name.endswith(_ENCODERS):
        return False
    raise document.refusal(
        f"'architectures' is {document.shown('architectures')}, accepted: text decoders "
        f"({', '.join('…' + end for end in _DECODERS)}) and encoders "
        f"({', '.join('…' + end for end in _ENCODERS)})"
    )


def read_sentence_options(folder: Path) -> SentenceOptions:
    """What the files of sentence-transformers say; the mean of all tokens where there are none.

    Raises:
        ConfigError: they ask for something else than pooling and scaling.
    """
    if not (folder / MODULES_NAME).is_file():
        return SentenceOptions(("mean",), False, None, {}, False)
    stated = _optional(folder / _PROMPTS_NAME).raw("prompts")
    named = stated.items() if isinstance(stated, dict) else ()
    prompts = {str(name): text for name, text in named if isinstance(text, str) and text}
    poolings: tuple[str, ...] = ()
    normalized = False
    for kind, path in _modules(folder):
        if kind == "Pooling":
            poolings = _poolings(folder / path / "config.json", bool(prompts))
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer" or path not in ("", "."):
            raise ConfigError(
                f"{folder / MODULES_NAME} names {kind[:80]!r} in {path[:80]!r}; accepted are a Transformer "
                "beside it, Pooling and Normalize"
            )
    if not poolings:
        raise ConfigError(f"{folder / MODULES_NAME} names no Pooling; {_REMEDY}")
    length = _optional(folder / _LENGTH_NAME).optional_integer("max_seq_length", 1, _MAX_LENGTH)
    return SentenceOptions(poolings, normalized, length, prompts, True)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of every step, in order."""
    path = folder / MODULES_NAME
    with path.open("rb") as file:
        raw = file.read(_MAX_MODULES_BYTES)
    steps = parse_json(raw, str(path), ConfigError, _REMEDY)
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ConfigError(f"{path} is no list of modules; {_REMEDY}")
    found = []
    for step in steps:
        kind, place = step.get("type"), step.get("path", "")
        if not isinstance(kind, str) or not isinstance(place, str) or any(c in "/\\:" for c in place):
            raise ConfigError(f"{path} names a module in {place!r:.80}; accepted are folders beside it")
        found.append((kind.rpartition(".")[2], place))
    return found


def _poolings(path: Path, has_prompts: bool) -> tuple[str, ...]:
    config = read_json(path, _REMEDY)
    named = config.raw("pooling_mode")
    if named is None:
        found = tuple(n for n in POOLINGS if config.raw(f"pooling_mode_{_KEYS[n]}") is True)
    else:
        wanted = named if isinstance(named, list) else [named]
        found = tuple(name for name in POOLINGS if name in wanted)
        if len(found) != len(wanted):
            raise config.refusal(f"'pooling_mode' is {named!r:.80}, accepted: {', '.join(POOLINGS)}")
    if not found:
        raise config.refusal(f"no way of pooling is set; accepted: {', '.join(POOLINGS)}")
    if config.raw("include_prompt") is False and has_prompts:
        raise config.refusal("'include_prompt' is false, which is not supported: prompts are pooled, too")
    return found


def _optional(path: Path) -> Fields:
    """A JSON file; an empty one where it is not there."""
    return read_json(path, _REMEDY) if path.is_file() else Fields({}, str(path), ConfigError, _REMEDY)


def stated_length(folder: Path) -> int | None:
    """Tokens that the tokenizer's configuration allows; None where it names none, or a number that stands
    for none.
    """
    length = _optional(folder / "tokenizer_config.json").raw("model_max_length")
    return length if isinstance(length, int) and 0 < length <= _MAX_LENGTH else None


def largest(config: Any, *names: str) -> int | None:
    """The first of these sizes that a configuration has."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
