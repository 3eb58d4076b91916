"""A GGUF file, or its shards, as a published checkpoint: documents in a folder of their own, and tensors.

Knows which files belong together and which documents a checkpoint has. The folder is temporary, and lives as
long as the object: whoever reads a checkpoint's documents reads them there.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.gguf_files.config import Stored, architecture_of, configuration, head_counts
from phirt_export.gguf_files.header import GgufFile, read_header
from phirt_export.gguf_files.tensors import ROPE_FACTORS, GgufTensor, published_tensors
from phirt_export.gguf_files.tokenizer import tokenizer_files

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_MAX_SHARDS = 1024
_MAX_PAIRS = 1024
_TABLE = "token_embd.weight"
_REMEDY = "fetch the file again"


class GgufCheckpoint:
    """An opened file, with the others where it is one of several shards.

    Attributes:
        tensors: by published names.
        state: what tells the files from others, in plain values.

    Raises:
        ConfigError: a file is missing, damaged or truncated, or the model is none that is read.
    """

    def __init__(self, path: Path) -> None:
        files = [read_header(shard) for shard in _shards(path)]
        metadata = Fields(dict(files[0].metadata), str(path), ConfigError, _REMEDY)
        architecture = architecture_of(metadata)
        self.tensors: Mapping[str, GgufTensor] = published_tensors(
            files, architecture, *head_counts(metadata, architecture)
        )
        self.state = [list(file.state) for file in files]
        stored = _what_is_stored(files, metadata)
        tokenizer = tokenizer_files(metadata, architecture, stored.vocab_size)
        documents = {
            "config.json": configuration(metadata, stored) | tokenizer.ids,
            "tokenizer.json": tokenizer.tokenizer,
            "tokenizer_config.json": tokenizer.config | _template(metadata),
        }
        self._folder = tempfile.TemporaryDirectory(prefix="phirt-gguf-")
        # Under the file's name: messages about a document name it.
        self.folder = Path(self._folder.name) / path.stem
        self.folder.mkdir()
        for name, document in documents.items():
            (self.folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _shards(path: Path) -> list[Path]:
    """All files of a model, given one of them."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if not 1 <= int(match[2]) <= count <= _MAX_SHARDS:
        raise ConfigError(f"{path} is named as one of {count} shards, accepted: 1 to {_MAX_SHARDS}")
    shards = [path.with_name(f"{match[1]}-{n:05}-of-{match[3]}{match[4]}") for n in range(1, count + 1)]
    if lost := [shard.name for shard in shards if not shard.is_file()]:
        raise ConfigError(
            f"{path} is one of {count} shards, of which {len(lost)} are missing: {lost[0]}"
            + (" ..." if len(lost) > 1 else "")
            + "; fetch the missing shards"
        )
    return shards


def _template(metadata: Fields) -> dict[str, str]:
    template = metadata.raw("tokenizer.chat_template")
    if template is None:
        return {}
    if not isinstance(template, str):
        raise metadata.refusal("'tokenizer.chat_template' is no text")
    return {"chat_template": template}


def _what_is_stored(files: Sequence[GgufFile], metadata: Fields) -> Stored:
    entries = {name: (file, entry) for file in files for name, entry in file.tensors.items()}
    if _TABLE not in entries or len(entries[_TABLE][1].shape) != 2:
        raise metadata.refusal(f"it holds no token table {_TABLE!r}")
    return Stored(
        vocab_size=entries[_TABLE][1].shape[0],
        has_head="output.weight" in entries,
        biases=frozenset(name.split(".")[-2] for name in entries if name.endswith(".bias")),
        factors={name: _factors(*entries[name], metadata) for name in ROPE_FACTORS if name in entries},
    )


def _factors(file: GgufFile, entry: Any, metadata: Fields) -> list[float]:
    tensor = GgufTensor(entry, file.data)
    if len(tensor.shape) != 1 or tensor.kind != "F32" or tensor.shape[0] > _MAX_PAIRS:
        raise metadata.refusal("its rotary factors are no short list in float32")
    values = tensor.tensor()
    if not np.isfinite(values).all():
        raise metadata.refusal("its rotary factors are not finite")
    return [float(value) for value in values]
