"""A PEFT folder as a checkpoint: its base model with the adapter merged into the weights.

Knows where the base lies, which of the two folders says what about text, and what an adapter changes in the
base's configuration. The arithmetic is `merging`'s matter, what the settings mean `peft_config`'s.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phirt.bundle.peft import WEIGHTS_NAME
from phirt.bundle.peft_config import CONFIG_NAME, read_settings
from phirt.errors import AdapterError
from phirt_export.containers import INDEX_NAME, PublishedTensor, open_weights, read_json
from phirt_export.containers import WEIGHTS_NAME as BASE_WEIGHTS_NAME
from phirt_export.families import read_document
from phirt_export.hub import HubId, hub_id, kept
from phirt_export.merging import merged_tensors
from phirt_export.packed.checkpoint import original_tensors
from phirt_export.published.decoder import EMBEDDING, HEAD
from phirt_export.reference.config import CONFIG_NAME as BASE_CONFIG_NAME

_HONOURED = ("use_dora", "bias", "lora_bias", "modules_to_save")
# What an adapter's folder may say in the place of its base's: the tokenizer that it was trained with.
_TEXT = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_MAX_DOCUMENT_BYTES = 1 << 28


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    weights = (BASE_WEIGHTS_NAME, INDEX_NAME)
    return (folder / CONFIG_NAME).is_file() and not any((folder / name).is_file() for name in weights)


def named_base(folder: Path) -> Path | HubId:
    """The base that an adapter names: a folder, as seen from here or from the adapter's, or what is published
    under that name.

    Raises:
        AdapterError: it names none, or none that can be one.
    """
    settings = read_settings(folder, _HONOURED, "be merged")
    name = settings.base_model_name_or_path
    if not name:
        raise AdapterError(
            f"{folder / CONFIG_NAME} does not say which model it belongs to; name it with --base"
        )
    for place in (Path(name).expanduser(), folder / name):
        if place.is_dir():
            return place
    if (of := hub_id(name, settings.revision)) is not None:
        return of
    raise AdapterError(f"the base of {folder}, {name[:200]!r}, is no folder here; name it with --base")


class AdaptedCheckpoint:
    """An adapter's base with the adapter in it.

    Attributes:
        tensors: by published names.
        folder: its documents. Temporary: it lives as long as the object.
        state: what tells the weights from others, in plain values.

    Raises:
        AdapterError: the adapter is damaged, does not fit the base, or asks for what cannot be merged.
        ConfigError: the base cannot be read.
        HubError: the adapter names a published base, of which no copy is kept here.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self._settings = read_settings(folder, _HONOURED, "be merged")
        if base is None:
            named = named_base(folder)
            base = kept(named) if isinstance(named, HubId) else named
        self._path = folder / WEIGHTS_NAME
        self.tensors: dict[str, PublishedTensor] = dict(
            original_tensors(base, read_document(base), open_weights(base))
        )
        plain = dict(self.tensors)
        for name, tensor in merged_tensors(self._path, self._settings, plain).items():
            self.tensors[name] = tensor
        changes = self._configuration_changes(plain) | {"quantization_config": None}
        self._folder = tempfile.TemporaryDirectory(prefix="phirt-adapted-")
        self.folder = Path(self._folder.name) / folder.absolute().name
        self.folder.mkdir()
        _write_documents(self.folder, base, folder, changes)
        files = sorted([*base.glob("*.safetensors"), self._path, folder / CONFIG_NAME])
        self.state = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]

    def _configuration_changes(self, plain: Mapping[str, PublishedTensor]) -> dict[str, Any]:
        """What the adapter changes in config.json: the vocabulary, and that head and table are two matrices
        where one of them alone is changed.
        """
        changes: dict[str, Any] = {}
        table, before = self.tensors.get(EMBEDDING), plain.get(EMBEDDING)
        if table is None or before is None:
            return changes
        if table.shape != before.shape:
            changes["vocab_size"] = table.shape[0]
        if self._settings.ensure_weight_tying and HEAD not in plain:
            self.tensors.pop(HEAD, None)
            return changes
        changed = {name for name in (EMBEDDING, HEAD) if self.tensors.get(name) is not plain.get(name)}
        if changed and HEAD not in self.tensors and table.shape == before.shape:
            self.tensors[HEAD] = before
        if changed and HEAD in self.tensors:
            changes["tie_word_embeddings"] = False
        return changes


def _write_documents(place: Path, base: Path, adapter: Path, changes: Mapping[str, Any]) -> None:
    """Everything that says how the weights are meant: the base's, and of a tokenizer the adapter's own."""
    for path in sorted(base.iterdir()):
        if path.is_file() and path.stat().st_size <= _MAX_DOCUMENT_BYTES and path.suffix != ".safetensors":
            (place / path.name).write_bytes(path.read_bytes())
        elif path.is_dir() and (path / CONFIG_NAME).is_file():  # adapters that belong to the base
            (place / path.name).symlink_to(path.absolute(), target_is_directory=True)
    if (adapter / _TEXT[0]).is_file():
        for name in _TEXT:
            (place / name).unlink(missing_ok=True)
            if (adapter / name).is_file():
                (place / name).write_bytes((adapter / name).read_bytes())
    config = read_json(place / BASE_CONFIG_NAME, "fetch the base's own config.json")
    changes = {key: value for key, value in changes.items() if config.raw(key) != value}
    if changes:
        document = {**dict(config.items()), **changes}
        (place / BASE_CONFIG_NAME).write_text(json.dumps(document), encoding="utf-8")
