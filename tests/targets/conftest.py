"""Bundles of the trained model, made once a session."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import phirt

_SPEC = importlib.util.spec_from_file_location("nano_variants", Path(__file__).with_name("nano_variants.py"))
sys.modules["nano_variants"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["nano_variants"])

from nano_variants import EXAMPLES, NANO, TEXTS, Answered, answered, made  # noqa: E402

from phirt_export.variants.adding import add_targets  # noqa: E402


@pytest.fixture(scope="session")
def nano() -> phirt.Model:
    """The model on the CPU, with its own graphs."""
    return phirt.load(NANO)


@pytest.fixture(scope="session")
def held_out(nano) -> list[Answered]:
    """Texts, a picture and a recording: each adapter."""
    media = [
        answered(nano, "How many shapes are there?", images=[EXAMPLES / "shapes.png"]),
        answered(nano, "Transcribe the audio.", audio=[EXAMPLES / "seven.flac"]),
    ]
    return [*(answered(nano, text) for text in TEXTS), *media]


@pytest.fixture(scope="session")
def eight_bits(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("nano") / "int8", 8)


@pytest.fixture(scope="session")
def four_bits(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("nano") / "int4", 4)


@pytest.fixture(scope="session")
def for_gpus(tmp_path_factory) -> Path:
    targets = ["cpu", "cuda", "directml", "webgpu", "webgpu_float32"]
    return add_targets(NANO, tmp_path_factory.mktemp("nano") / "gpus", targets)
