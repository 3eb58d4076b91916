"""The embedded model: `phirt.load()` opens it, and it answers text, a picture and a recording."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import phirt
from phirt.model import EMBEDDED, embedded_bundle
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_apps import settings
from phirt_apps.cli import app

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "apps" / "examples"
RECIPE = ROOT / "export" / "recipes" / "mini"
SHORT = phirt.GenerationConfig(max_new_tokens=24)
# Deflated, codes take a tenth less: a wheel with it stays below 100 MiB, where package indexes draw a line.
MAX_BYTES = 117_000_000
TERMS = ("LICENSE-Apache-2.0.txt", "NOTICE")


@pytest.fixture(scope="module")
def model() -> phirt.Model:
    return phirt.load(verify=True)


def test_it_is_the_model_of_this_name_and_kind(model: phirt.Model) -> None:
    assert model.manifest.name == EMBEDDED == settings.EMBEDDED
    assert (set(model.manifest.modalities), set(model.manifest.adapters)) == (
        {"image", "audio"},
        {"vision", "speech"},
    )


def test_text(model: phirt.Model) -> None:
    result = model.chat().send("What is the capital of France?", config=SHORT).result
    assert "Paris" in result.text
    assert (result.adapter, result.finish_reason) == ("none", "stop")


def test_a_picture(model: phirt.Model) -> None:
    result = model.chat().send("What is this?", images=[EXAMPLES / "shoes.jpg"], config=SHORT).result
    assert (result.text, result.adapter, result.usage.image_tokens) == ("shoes", "vision", 28)


def test_a_recording(model: phirt.Model) -> None:
    result = model.chat().send(TRANSCRIBE_PROMPT, audio=[EXAMPLES / "seven.flac"], config=SHORT).result
    assert (result.text, result.adapter) == ("seven", "speech")


def test_a_conversation_of_text_picture_recording_and_text(model: phirt.Model) -> None:
    """A picture decides, whatever else is there; what was said before is read again for it, once."""
    chat = model.chat()
    asked = (
        ("Hello", {}),
        ("What is this?", {"images": [EXAMPLES / "shoes.jpg"]}),
        ("", {"audio": [EXAMPLES / "seven.flac"]}),
        ("And what is this?", {}),
    )
    results = [chat.send(text, config=SHORT, **media).result for text, media in asked]
    assert [result.adapter for result in results] == ["none", "vision", "vision", "vision"]
    cached = [result.usage.cached_tokens for result in results]
    assert cached[1] == 0 and 0 < cached[2] < cached[3]
    assert all(result.text.strip() for result in results)


def test_the_commands_use_it_where_none_is_named(embedded: None) -> None:
    said = CliRunner().invoke(
        app, ["chat", "--image", str(EXAMPLES / "shoes.jpg"), "What is this?"], input=""
    )
    assert (said.exit_code, said.stdout, said.stderr) == (0, "shoes\n", "")


def test_the_bundle_is_small_and_has_its_card_and_terms(model: phirt.Model) -> None:
    folder = embedded_bundle()
    assert {path.name for path in folder.iterdir()} == {*model.manifest.files, "manifest.json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for part in ("## Weights that it starts from", "## Data", "## Results", "## Limits"):
        assert part in card
    for name in ("MODEL_CARD.md", *TERMS):
        assert (folder / name).read_bytes() == (RECIPE / name).read_bytes()


def test_the_readme_says_how_large_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    size = sum(path.stat().st_size for path in embedded_bundle().iterdir())
    assert f"All of it takes {size / 1e6:.0f} MB" in text
    assert "RESULT" not in text


def test_the_notice_names_every_package_of_the_card() -> None:
    packages = r"(?:[a-z0-9]+-)+[a-z0-9]+ \d+\.\d+\.\d+|timm \d+\.\d+\.\d+"
    card, notice = ((RECIPE / name).read_text(encoding="utf-8") for name in ("MODEL_CARD.md", "NOTICE"))
    named = set(re.findall(packages, card.partition("## Weights")[2].partition("## Data")[0]))
    assert len(named) == 4 and named <= set(re.findall(packages, notice))
    assert "Version 2.0, January 2004" in (RECIPE / TERMS[0]).read_text(encoding="utf-8")
