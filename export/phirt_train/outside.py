"""Weights from outside of a run that a stage starts from: checkpoints of every kind that is exported, and
files of tensors under the reference model's own names.

Knows names and shapes, and what of a checkpoint's sizes must agree where its tensors are taken. Knows nothing
of steps or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from phirt.bundle.tensor_file import open_file
from phirt.errors import ConfigError
from phirt_export.chat_files import TOKENIZER_NAME
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.containers import WEIGHTS_NAME, some
from phirt_export.hub import HubError, hub_id, kept
from phirt_export.published.decoder import EMBEDDING
from phirt_export.reference import DecoderConfig, ModelConfig
from phirt_export.reference.config import CONFIG_NAME
from phirt_train.selection import fits
from phirt_train.stage import StageConfig

_TENSORS = ".safetensors"
_LAYERS = "model.layers."
# What shapes do not tell of a decoder and its weights depend on.
_SAME = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "norm_eps", "sliding_window", "tied")


class _Opened(NamedTuple):
    """What there is: shapes and values by name, and the sizes of the model where they are told."""

    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], np.ndarray]
    config: ModelConfig | None


def find_outside(name: str, folder: Path) -> Path:
    """Where the weights lie that a recipe in `folder` names: a path from there or from here, or the kept copy
    of what is published under that name.

    Raises:
        ConfigError: they are not there.
    """
    for place in (folder / Path(name).expanduser(), Path(name).expanduser()):
        if place.exists():
            return place
    if (of := hub_id(name)) is None:
        raise ConfigError(f"the checkpoint {name[:200]!r} is neither in {folder} nor here; correct its path")
    try:
        return kept(of)
    except HubError as error:
        raise ConfigError(
            f"the checkpoint {name!r} is neither in {folder} nor here, and no copy of a published one is "
            f"kept; correct its path, or fetch it with 'phirt export {name} -o BUNDLE'"
        ) from error


def weights_identity(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a checkpoint; what is trained from it depends on them."""
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    return [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that one of the patterns fits, all where there are no patterns (see `StageConfig.takes`).

    Raises:
        ConfigError: a pattern fits none.
    """

    known = list(names)
    if idle := [pattern for pattern in patterns if not any(fits(name, pattern) for name in known)]:
        raise ConfigError(f"no tensor of the checkpoint fits {', '.join(idle)}; it has {some(known)}")
    return [name for name in known if not patterns or any(fits(name, pattern) for pattern in patterns)]


def check_outside(path: Path, stage: StageConfig, model: ModelConfig) -> list[str]:
    """The names of the tensors that are taken.

    Args:
        path: as `find_outside` has found it.
        stage: says which tensors, and whether positions turn otherwise on purpose.
        model: the model that takes them, as the stage has it.

    Raises:
        ConfigError: in one line, all that does not fit.
    """
    opened = _open(path)
    names = chosen(opened.shapes, stage.takes)
    wanted = expected_shapes(model)
    groups = {
        "have no place in the model": [name for name in names if name not in wanted],
        "have another shape": [
            f"{name} is {list(opened.shapes[name])}, not {list(wanted[name])}"
            for name in names
            if name in wanted and opened.shapes[name] != wanted[name]
        ],
    }
    problems = [f"{len(of)} tensors {what}: {some(of)}" for what, of in groups.items() if of]
    if opened.config is not None and any(name.startswith(_LAYERS) for name in names):
        problems += _unlike(opened.config.decoder, model.decoder, is_rope_changed=stage.rope is not None)
    if problems:
        raise ConfigError(
            f"stage {stage.name}: {path} does not fit the model: {'; '.join(problems)}; give the model its "
            "sizes, or name under 'takes' what is wanted of it"
        )
    return names


def _unlike(theirs: DecoderConfig, ours: DecoderConfig, *, is_rope_changed: bool) -> list[str]:
    """What the layers depend on beside their weights and is otherwise in the model."""
    found = [
        f"{name} is {getattr(theirs, name)} there and {getattr(ours, name)} here"
        for name in _SAME
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if theirs.rope.rotary_dim != ours.rope.rotary_dim:
        found.append(f"rotary_dim is {theirs.rope.rotary_dim} there and {ours.rope.rotary_dim} here")
    elif theirs.rope.theta != ours.rope.theta and not is_rope_changed:
        found.append(
            f"its rope has theta {theirs.rope.theta:g}, the model {ours.rope.theta:g} (a change on purpose "
            "is the stage's 'rope')"
        )
    return found


def check_tokenizer(path: Path, stage: StageConfig, tokenizer: bytes) -> None:
    """Refuses a token table that was made for another tokenizer than the run's.

    Raises:
        ConfigError: as said.
    """
    if not (path / TOKENIZER_NAME).is_file() or EMBEDDING not in chosen(_open(path).shapes, stage.takes):
        return
    if (path / TOKENIZER_NAME).read_bytes() != tokenizer:
        raise ConfigError(
            f"stage {stage.name}: the token table of {path} belongs to another tokenizer than the run's; "
            f'take it, too: [tokenizer] file = "{path}"'
        )


def read_outside(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of these names, float32."""
    opened = _open(path)
    return {name: torch.from_numpy(np.ascontiguousarray(opened.tensor(name))) for name in names}


def _open(path: Path) -> _Opened:
    file = path / WEIGHTS_NAME if path.is_dir() and not (path / CONFIG_NAME).is_file() else path
    if file.suffix == _TENSORS and file.is_file():
        stored = open_file(file, remedy="name a checkpoint, or a file of the model's tensors")
        return _Opened({n: one.shape for n, one in stored.items()}, lambda n: stored[n].tensor(), None)
    checkpoint = Checkpoint(path)
    return _Opened(checkpoint.shapes, checkpoint.tensor, checkpoint.config)
