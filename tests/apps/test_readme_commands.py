"""Every command of the README runs as it is written, from where its reader stands: in the clone, with `phirt`
on the path. What the documentation's pages show exists.

The engineer's files are stand-ins: a small random checkpoint, an adapter for it, a few records of data.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from phirt_apps.cli import app

pytestmark = pytest.mark.skipif(os.name != "posix", reason="commands of a POSIX shell")

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "apps" / "docs" / "pages").glob("*.md"))
PHIRT = [sys.executable, "-c", "from phirt_apps.__main__ import main; main()"]


def _lines(text: str) -> list[str]:
    """The commands of all shell blocks that call the installed program, without their comments."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.search(r"(^|\| )phirt ", line)]


_OF_THEIR_OWN = ("phirt train ", "phirt bench ", "phirt serve", "phirt desktop")  # tests below; tests/desktop
COMMANDS = [line for line in _lines(TEXT) if line != "phirt chat" and not line.startswith(_OF_THEIR_OWN)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A folder with what the repository has, and what the engineer has made there."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "data", ".venv", "build", "dist"):
            (folder / entry.name).symlink_to(entry)
    shutil.copytree(bundle.parent / "checkpoint", folder / "runs" / "nano" / "checkpoint")
    _write_adapter(folder / "my-lora")
    (folder / "benchmarks").mkdir()
    question = {"query": "Question: What floats?", "choices": ["a ship", "a stone"], "gold": 0}
    (folder / "benchmarks" / "arc_easy.jsonl").write_text(json.dumps(question) + "\n")
    problem = {"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
    (folder / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    path = folder / "bin" / "phirt"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.join(PHIRT)} "$@"\n')
    path.chmod(0o755)
    return folder


def _write_adapter(folder: Path) -> None:
    """An adapter of the `q_proj` and `v_proj` of the stand-in, as PEFT saves one."""
    folder.mkdir()
    rng, tensors = np.random.default_rng(1), {}
    for layer in range(2):
        for name, rows in (("q_proj", 128), ("v_proj", 64)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = rng.standard_normal((4, 64), dtype=np.float32)
            tensors[f"{key}.lora_B.weight"] = rng.standard_normal((rows, 4), dtype=np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _run(line: str, clone: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", line],
        cwd=clone,
        env=_environment(clone),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )


def _environment(clone: Path) -> dict[str, str]:
    """As the reader has it, but with short answers."""
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    own = {"PATH": path, "PHIRT_CONFIG": str(clone / "settings.toml"), "PHIRT_MAX_NEW_TOKENS": "16"}
    return {**{name: value for name, value in os.environ.items() if name != "PHIRT_MODEL"}, **own}


def test_the_commands_run_as_they_are_written(clone: Path) -> None:
    """One after the other: later ones use what earlier ones have made."""
    assert len(COMMANDS) >= 15
    for line in COMMANDS:
        done = _run(line, clone)
        assert b"error: " not in done.stderr and done.returncode == 0, (line, done.stderr)
        assert done.stdout or "answer.json" in line or line.startswith(("phirt config", "phirt remove")), line
    assert json.loads((clone / "answer.json").read_text())["text"]


def test_the_session_of_the_readme(terminal, embedded: None) -> None:
    assert "phirt chat" in _lines(TEXT)
    screen = terminal("chat")
    screen.wait("leaves")
    screen.type("/help\r")
    screen.wait("/quit")
    screen.type("\x04")
    assert screen.finish() == 0


def test_the_bench_of_the_readme(clone: Path) -> None:
    (line,) = (line for line in _lines(TEXT) if line.startswith("phirt bench"))
    if not (clone / "my-bundle").exists():
        assert _run(next(line for line in COMMANDS if line.startswith("phirt export")), clone).returncode == 0
    done = _run(f"{line} --repeats 1 --depth 8 --prompt-tokens 8 --new-tokens 2", clone)
    assert done.returncode == 0 and b"decode" in done.stdout, done.stderr


def test_the_server_of_the_readme_answers(clone: Path) -> None:
    """As it is written, but for the port, which somebody else may have, and with a short answer: a model this
    small may go on without an end.
    """
    (line,) = (line for line in _lines(TEXT) if line.startswith("phirt serve"))
    (question,) = re.findall(r"^ *(curl http://127\.0\.0\.1:8000/.*)$", TEXT, re.MULTILINE)
    server = subprocess.Popen(
        ["bash", "-c", f"exec {line} --port 0 --max-new-tokens 16"],
        cwd=clone,
        env=_environment(clone),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    try:
        assert server.stderr is not None
        address = re.search(rb"http://127\.0\.0\.1:\d+", server.stderr.readline())
        assert address is not None
        done = _run(question.replace("http://127.0.0.1:8000", address[0].decode()), clone)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"], done
    finally:
        server.terminate()
        _, rest = server.communicate(timeout=60)
    assert (server.returncode, rest) == (143, b"")


def test_the_training_of_the_readme_begins(clone: Path) -> None:
    """It takes hours to its end; Ctrl-C ends it here."""
    (line,) = (line for line in _lines(TEXT) if line.startswith("phirt train export/"))
    _small_data().write_small_data(clone / "data")
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line} -o runs/begun"],
        cwd=clone,
        env=_environment(clone),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130 and b"error" not in first + rest, first + rest


def _small_data() -> Any:
    path = ROOT / "tests" / "train" / "small_data.py"
    spec = importlib.util.spec_from_file_location("small_data_for_readme", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_command_and_option_exists(page: Path) -> None:
    for line in _lines(page.read_text(encoding="utf-8")):
        for command, arguments in re.findall(r"\bphirt (train finetune|\w+)([^|]*)", line):
            shown = CliRunner().invoke(app, [*command.split(), "--help"])
            assert shown.exit_code == 0, line
            for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", arguments):
                assert option in shown.stdout, line


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_key_of_the_settings_exists(page: Path) -> None:
    from phirt_apps.settings import KEYS, variable

    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"phirt config ([a-z_]+)", text)) <= set(KEYS)
    known = {*map(variable, KEYS), "PHIRT_CONFIG", "PHIRT_CACHE", "PHIRT_DEBUG", "PHIRT_API_KEY"}
    known |= {"PHIRT_ONNXRUNTIME", "PHIRT_LIBFUZZER", "PHIRT_WEB_MODULES"}  # of tests of hosts for apps
    known.add("PHIRT_KERNELS")  # which is no setting: it is for whoever looks for a cause
    assert set(re.findall(r"\bPHIRT_[A-Z_]+\b", text)) <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_what_is_to_be_installed_exists(page: Path) -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    text = page.read_text(encoding="utf-8")
    named = [
        name for found in re.findall(r"pip install [^`\n]*\.\[([\w,]+)\]", text) for name in found.split(",")
    ]
    assert set(named) <= set(extras)
    assert "phirt[" not in text  # an index of packages has no phirt
