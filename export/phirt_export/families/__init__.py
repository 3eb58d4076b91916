"""Layouts of checkpoints: from a `config.json` to a ModelConfig and to the published name of every tensor.

Knows which `model_type` is read by which module. Each module knows one family's configuration and names;
none of them opens a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.families import multimodal, text
from phirt_export.families.layout import Layout, Part, Published
from phirt_export.reference.config import CONFIG_NAME, check_values, load_config

__all__ = ["FAMILIES", "Layout", "Part", "read_document", "read_layout"]

_REMEDY = "fetch the checkpoint's own config.json"

FAMILIES: Mapping[str, Callable[[Published], Layout]] = {
    "phi4mm": multimodal.read_original,
    "phi4_multimodal": multimodal.read_native,
    "phi3": text.read_phi3,
    "llama": text.read_llama,
    "mistral": text.read_mistral,
    "qwen2": text.read_qwen2,
    "qwen3": text.read_qwen3,
}


def read_document(folder: Path) -> Fields:
    """The folder's config.json.

    Raises:
        ConfigError: it is missing, too large or no JSON object.
    """
    if not (folder / CONFIG_NAME).is_file() and folder.is_dir():
        raise ConfigError(f"{folder} holds no {CONFIG_NAME}; a checkpoint has it beside its weights")
    return read_json(folder / CONFIG_NAME, _REMEDY) if folder.is_dir() else _no_folder(folder)


def read_layout(folder: Path, document: Fields, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a checkpoint folder with this config.json and stored tensors of these shapes.

    Raises:
        ConfigError: the family is not read here, or its configuration asks for what cannot be built.
    """
    if not document.has("model_type") and document.has("decoder"):
        return Layout("phirt", load_config(folder))
    family = document.text("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"{folder / CONFIG_NAME}: model_type {family[:80]!r} is not read here, accepted: "
            f"{', '.join(FAMILIES)}; convert other standard decoders and encoders with optimum-onnx, in an "
            "environment of its own"
        )
    try:
        layout = FAMILIES[family](Published(folder, document, shapes))
        check_values(layout.config)
    except (ArithmeticError, LookupError, ValueError) as error:  # sizes that contradict each other
        raise ConfigError(
            f"{folder / CONFIG_NAME} describes no model that can be built: {error!r:.200}; {_REMEDY}"
        ) from error
    return layout


def _no_folder(folder: Path) -> Fields:
    raise ConfigError(
        f"{folder} is not a folder; a checkpoint is a folder with {CONFIG_NAME} and its weights"
    )
