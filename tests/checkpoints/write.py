"""Puts a random checkpoint together: configuration, weights, tokenizer, template, generation settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from . import multimodal, text
from .tokenizer import VOCABULARY_TAIL, read_ranks, special_id, tokenizer_json
from .writer import write_file, write_shards

SHARD_BYTES = 5_000_000_000
MULTIMODAL = ("phi4mm", "phi4_multimodal")
FAMILIES = (*MULTIMODAL, *text.SMALL)
SCALES = ("small", "904m", "full")

# The published format: role, content, end; tools in the system turn.
TEMPLATE = (
    "{% for message in messages %}{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] }}"
    "{% if message['role'] == 'system' and message['tools'] %}"
    "{{ '<|tool|>' ~ message['tools'] ~ '<|/tool|>' }}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else '<|endoftext|>' }}"
)


def configurations(family: str) -> dict[str, dict[str, Any]]:
    """The family's configurations by scale; full size exists for the Phi models, 904m for Phi-4-mini."""
    if family in MULTIMODAL:
        return {"small": multimodal.SMALL, "full": multimodal.FULL}
    known = {"small": text.SMALL, "904m": text.BENCHMARK, "full": text.FULL}
    return {scale: configs[family] for scale, configs in known.items() if family in configs}


def write_checkpoint(
    folder: Path,
    family: str,
    ranks_file: Path,
    *,
    scale: str = "small",
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint of `family` to `folder`, which must not exist; it appears when complete.

    Equal seeds give both multimodal layouts equal weights. `changes` replace entries of config.json.
    """
    config = {**configurations(family)[scale], **(changes or {})}
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    _write_tokenizer(staging, config["vocab_size"], ranks_file, family)
    if family in MULTIMODAL:
        _write_multimodal(staging, family, config, seed, shard_bytes)
    else:
        _write_json(staging / "config.json", config)
        write_shards(staging, text.shapes(config), {}, seed, shard_bytes)
    staging.rename(folder)
    return folder


def _write_tokenizer(folder: Path, vocab: int, ranks_file: Path, family: str) -> None:
    # Vocabularies that are smaller than o200k take its first ranks; larger ones leave ids unused.
    count = min(vocab, 200_064) - VOCABULARY_TAIL
    ranks = read_ranks(ranks_file, count)
    (folder / "tokenizer.json").write_text(tokenizer_json(ranks), encoding="utf-8")
    end = [special_id("<|end|>", count), special_id("<|endoftext|>", count)]
    _write_json(folder / "generation_config.json", {"eos_token_id": end, "bos_token_id": end[1]})
    if family == "phi4_multimodal":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        _write_json(folder / "tokenizer_config.json", {})
    else:
        _write_json(folder / "tokenizer_config.json", {"chat_template": TEMPLATE})


def _write_multimodal(folder: Path, family: str, config: dict[str, Any], seed: int, shard_bytes: int) -> None:
    shapes = multimodal.shapes(config)
    if family == "phi4mm":
        _write_json(folder / "config.json", {key: v for key, v in config.items() if not key.startswith("_")})
        write_shards(folder, shapes, {}, seed, shard_bytes)
        return
    count = config["vocab_size"] - VOCABULARY_TAIL
    media = (special_id("<|endoftext10|>", count), special_id("<|endoftext11|>", count))
    _write_json(folder / "config.json", multimodal.native_config(config, *media))
    files: dict[str, dict[str, tuple[int, ...]]] = {"": {}, "vision-lora": {}, "speech-lora": {}}
    drawn_as: dict[str, dict[str, str]] = {name: {} for name in files}
    for name, shape in shapes.items():
        place, renamed = multimodal.native_name(name)
        files[place][renamed] = shape
        drawn_as[place][renamed] = name
    write_shards(folder, files[""], drawn_as[""], seed, shard_bytes)
    for route in multimodal.ROUTES:
        place = f"{route}-lora"
        (folder / place).mkdir()
        _write_json(folder / place / "adapter_config.json", multimodal.adapter_config(config, route))
        write_file(folder / place / "adapter_model.safetensors", files[place], drawn_as[place], seed)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))
