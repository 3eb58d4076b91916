"""A checkpoint's weights: one safetensors file, or the shards that an index names.

Knows the index and its shards; a single file is `tensor_file`'s matter. Knows nothing of what the tensors
mean. Everything in an index is taken for hostile: sizes, types, nesting, and the names of files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from phirt.bundle.tensor_file import StoredTensor, Values, open_file
from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_MAX_JSON_BYTES = 16 << 20
_MAX_SHARDS = 1024
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHOWN = 8


class PublishedTensor(Protocol):
    """A tensor of a checkpoint, whatever it is stored in, read as float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""

    @property
    def dtype(self) -> str:
        """The element type, by its name in safetensors."""

    def rows(self, start: int, stop: int) -> Values:
        """Rows start..stop-1 along the first axis."""

    def tensor(self) -> Values:
        """All of it."""


def read_json(path: Path, remedy: str, limit: int = _MAX_JSON_BYTES) -> Fields:
    """The JSON object in `path`, of at most `limit` bytes.

    Raises:
        ConfigError: the file is unreadable, too large, nested too deeply or no JSON object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}; {remedy}") from error
    if len(raw) > limit:
        raise ConfigError(f"{path} is larger than {limit} bytes; {remedy}")
    return Fields(parse_json(raw, str(path), ConfigError, remedy), str(path), ConfigError, remedy)


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder: of its one file, or of all shards that its index names.

    Raises:
        ConfigError: there are no weights, they are pickled, or a file is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; a checkpoint is a folder with config.json and {WEIGHTS_NAME}"
        )
    if (folder / WEIGHTS_NAME).is_file():
        return open_file(folder / WEIGHTS_NAME)
    if (folder / INDEX_NAME).is_file():
        return _open_shards(folder)
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if pickled:
        raise ConfigError(
            f"{folder} holds pickled weights ({some(pickled)}), which can run code when opened and are not "
            f"read; convert them to {WEIGHTS_NAME}"
        )
    raise ConfigError(
        f"{folder} holds no {WEIGHTS_NAME} and no {INDEX_NAME}; save the weights as safetensors"
    )


def _open_shards(folder: Path) -> dict[str, StoredTensor]:
    """Tensors of all shards. The index must agree with them, and names only files beside it."""
    path = folder / INDEX_NAME
    index = read_json(path, "fetch the checkpoint again")
    placed = index.raw("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise index.refusal("'weight_map' must name one file for each tensor")
    shards = sorted(set(placed.values()))
    for shard in shards[:_MAX_SHARDS]:
        if not shard.endswith(".safetensors") or any(c in "/\\:" or ord(c) < 32 for c in shard):
            raise ConfigError(
                f"{path} names {shard[:80]!r}; accepted are plain names of .safetensors files beside it"
            )
    if len(shards) > _MAX_SHARDS:
        raise ConfigError(f"{path} names {len(shards)} files, accepted: {_MAX_SHARDS} at most")
    if lost := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ConfigError(f"{folder} lacks {some(lost)}, which {INDEX_NAME} names; fetch the missing shards")
    opened = {shard: open_file(folder / shard) for shard in shards}
    if wrong := [name for name, shard in placed.items() if name not in opened[shard]]:
        raise ConfigError(
            f"{path} names {len(wrong)} tensors that their shards do not hold: {some(wrong)}; fetch the "
            "checkpoint again"
        )
    merged: dict[str, StoredTensor] = {}
    for shard, tensors in opened.items():
        if twice := sorted(merged.keys() & tensors.keys()):
            raise ConfigError(f"{folder / shard} repeats tensors of another shard: {some(twice)}")
        merged.update(tensors)
    return merged
