"""Families of checkpoints: one module a family, named after its `model_type`, with a function `read`.

Knows where families lie, and none of them: a new one is a new module here. Each knows its configuration and
the published name of every tensor; none opens a weight.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path

from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.published.layout import Layout, Published
from phirt_export.reference.config import CONFIG_NAME, check_values, load_config

OPTIMUM_REMEDY = (
    'pip install "phirt[optimum]" in an environment of its own exports other text decoders, and embedding '
    "models, through optimum-onnx"
)
_REMEDY = "fetch the checkpoint's own config.json"


def known_families() -> tuple[str, ...]:
    """The `model_type`s that are read."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def read_document(folder: Path) -> Fields:
    """The folder's config.json.

    Raises:
        ConfigError: it is missing, too large or no JSON object.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; a checkpoint is a folder with {CONFIG_NAME} and its weights"
        )
    if not (folder / CONFIG_NAME).is_file():
        raise ConfigError(f"{folder} holds no {CONFIG_NAME}; a checkpoint has it beside its weights")
    return read_json(folder / CONFIG_NAME, _REMEDY)


def read_layout(folder: Path, document: Fields, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a checkpoint folder with this config.json and stored tensors of these shapes.

    Raises:
        ConfigError: the family is not read here, or its configuration asks for what cannot be built.
    """
    if not document.has("model_type") and document.has("decoder"):
        return Layout(load_config(folder))
    family = document.text("model_type")
    if family not in known_families():
        raise ConfigError(
            f"{folder / CONFIG_NAME}: model_type {family[:80]!r} is none that phirt builds itself "
            f"({', '.join(known_families())}); {OPTIMUM_REMEDY}"
        )
    try:
        module = importlib.import_module(f"{__name__}.{family}")
        layout: Layout = module.read(Published(folder, document, shapes))
    except (ArithmeticError, LookupError, ValueError) as error:  # sizes that contradict each other
        raise ConfigError(
            f"{folder / CONFIG_NAME} describes no model that can be built: {error!r:.200}; {_REMEDY}"
        ) from error
    check_values(layout.config)
    return layout
