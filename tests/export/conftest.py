"""Exported bundles of small random models, made once a session."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch


def _make_importable(name: str, path: Path) -> None:
    """Tests are collected without packages, so modules they share are made importable by name."""
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_HERE = Path(__file__).parent
_make_importable("small_models", _HERE / "small_models.py")
_make_importable("checkpoints", _HERE.parent / "checkpoints" / "__init__.py")
_make_importable("loras", _HERE / "loras.py")
_make_importable("three_ways", _HERE / "three_ways.py")
_make_importable("gguf_models", _HERE / "gguf_models.py")
_make_importable("transformers_models", _HERE / "transformers_models.py")
_make_importable("phi4_published", _HERE / "phi4_published.py")

import small_models  # noqa: E402

from phirt_export.exporter import export_bundle  # noqa: E402
from phirt_export.reference import Model  # noqa: E402
from phirt_quant import samples  # noqa: E402

# The models are tiny; threads would only wait for each other.
torch.set_num_threads(1)


class Exported(NamedTuple):
    """A reference model, its checkpoint, and its unquantized bundle."""

    model: Model
    checkpoint: Path
    bundle: Path


def _export(folder: Path, **options) -> Exported:
    model = small_models.random_model(small_models.config(**options))
    checkpoint = small_models.save_checkpoint(model, folder / "checkpoint")
    bundle = export_bundle(checkpoint, folder / "bundle", bits=32)
    return Exported(model, checkpoint, bundle)


@pytest.fixture(scope="session")
def ranks(shared_data) -> Path:
    """The o200k ranks, from which tokenizers are built."""
    return shared_data / "tokenizer" / "o200k_base.tiktoken"


@pytest.fixture(scope="session")
def talking_checkpoint(tmp_path_factory) -> Path:
    """Random weights behind a real tokenizer and a chat template."""
    return small_models.save_talking_checkpoint(tmp_path_factory.mktemp("talking") / "checkpoint")


@pytest.fixture(scope="session")
def calibration_data(tmp_path_factory) -> Path:
    """A folder of every kind of file: texts, pictures, clips, and JSON lines about some of them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "more").mkdir()
    (folder / "a.txt").write_text("\n".join(samples.SENTENCES))
    (folder / "more" / "b.md").write_text(samples.SENTENCES[0])
    (folder / "notes.pdf").write_bytes(b"no calibration data")
    for i, picture in enumerate(samples.pictures()):
        picture.save(folder / f"{i}.png")
    for i, clip in enumerate(samples.clips()):
        (folder / "more" / f"{i}.wav").write_bytes(clip)
    records = [
        {"text": "A line of text by itself."},
        {"prompt": "What is it?", "image": "0.png", "answer": "A house and the sun."},
        {"image": ["1.png"], "audio": "more/0.wav", "answer": "An invoice, read aloud."},
        {"system": "Be brief.", "prompt": "Who bakes?", "answer": "The baker.<|tool_call|>["},
    ]
    (folder / "turns.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Exported:
    """Convolutional stem, one rotary regime."""
    return _export(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def long(tmp_path_factory) -> Exported:
    """Patch convolution, a long regime past 40 positions."""
    rotary = small_models.rope(original_context=40, context=160, long=True)
    return _export(tmp_path_factory.mktemp("long"), stem=False, rotary=rotary)


@pytest.fixture(scope="session", params=["plain", "long"])
def exported(request) -> Exported:
    """Each of the two."""
    return request.getfixturevalue(request.param)
