"""What the repository shows its readers: the README's paths and commands, the example media."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make_examples() -> ModuleType:
    """The script that made the example media."""
    spec = importlib.util.spec_from_file_location(
        "make_examples", ROOT / "apps" / "examples" / "make_examples.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_path_of_the_map_exists() -> None:
    rows = [line for line in README.splitlines() if line.startswith("|")]
    paths = [word for row in rows for word in re.findall(r"`([\w./-]+)`", row) if "/" in word]
    assert len(paths) > 20
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_two_commands_are_those_that_are_checked() -> None:
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    first, second = re.findall(r"^python3\.11 -m venv .*$", README, flags=re.MULTILINE)
    assert "apps/examples/shoes.jpg" in first and "apps/examples/shoes.jpg" in check
    for part in (first.split("phirt chat")[1].split("shoes.jpg")[1].strip(), 'pip" install --quiet .'):
        assert part in check
    for part in ('-c constraints.txt -e ".[dev]"', "-n 2"):
        assert part in second and part in check


def test_every_option_of_the_readme_exists() -> None:
    from typer.testing import CliRunner

    from phirt_apps.cli import app
    from phirt_apps.commands import subcommands

    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
    lines = re.findall(r"^\s*(?:echo [^|]*\| )?phirt (.+)$", blocks, flags=re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        command, *words = line.split("#")[0].split()
        called = (
            [command, words[0]] if words and f"{command} {words[0]}" in dict(subcommands()) else [command]
        )
        help_text = CliRunner().invoke(app, [*called, "--help"]).stdout
        assert help_text, line
        for option in [word for word in words if re.fullmatch(r"--?[a-z-]+", word)]:
            assert option in help_text, line


LAYERS = ["phirt", "quant/phirt_quant", "export/phirt_export", "export/phirt_train", "apps/phirt_apps"]


@pytest.mark.parametrize("place", LAYERS)
def test_the_linter_refuses_what_a_layer_may_not_import(place: str) -> None:
    """Also what is banned everywhere: a folder's own table of bans takes the place of the one above it."""
    above = [layer.split("/")[-1] for layer in LAYERS[LAYERS.index(place) + 1 :]]
    banned = ["optimum", *above, *(["torch"] if place == "phirt" else [])]
    code = "".join(f"import {name}.x\nfrom {name} import y\n" for name in banned)
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "concise"]
    done = subprocess.run(
        [*command, "--stdin-filename", f"{place}/new.py", "-"],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.count("TID251") == 2 * len(banned), done.stdout + done.stderr


def test_the_example_picture_is_what_the_script_draws(make_examples: ModuleType) -> None:
    drawn = np.asarray(make_examples.draw_shapes(), dtype=np.int16)
    with Image.open(ROOT / "apps" / "examples" / "shapes.png") as kept:
        difference = np.abs(drawn - np.asarray(kept.convert("RGB"), dtype=np.int16))
    assert difference.max() <= 8  # resampling may round differently from one Pillow to another


def test_the_example_clip_is_a_short_word() -> None:
    samples, rate = soundfile.read(ROOT / "apps" / "examples" / "seven.flac")
    assert rate == 16000 and samples.ndim == 1
    assert 0.4 < len(samples) / rate < 2.0 and 0.5 < np.abs(samples).max() <= 1.0


def test_a_word_without_a_speech_program(make_examples: ModuleType) -> None:
    samples = make_examples.synthesise_seven()
    assert samples.dtype == np.float32 and 0.4 < len(samples) / 16000 < 2.0
    assert np.abs(samples).max() == pytest.approx(0.8, abs=1e-6)
    spectrum = np.abs(np.fft.rfft(samples[1600 : 1600 + 2560]))  # the s: most of its power above 4 kHz
    high = np.fft.rfftfreq(2560, 1 / 16000) > 4000
    assert (spectrum[high] ** 2).sum() > 0.8 * (spectrum**2).sum()


def test_examples_are_small() -> None:
    for path in (ROOT / "apps" / "examples").iterdir():
        assert not path.is_file() or path.stat().st_size < 100_000
