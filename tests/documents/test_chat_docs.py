"""`phirt chat --docs` and /docs, with nano: which streams say what, the cache, a second process, damage."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

import phirt
from phirt_apps.cli import app
from phirt_apps.documents import place as place_module
from phirt_apps.interactive.session import Session, Setup
from phirt_apps.output import Output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "docs"
    place.mkdir()
    (place / "pump.md").write_text("# Pump\n\nThe filter is washed every two weeks.\n")
    return place


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHIRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "documents"


def _ask(*arguments: object):
    return CliRunner().invoke(app, ["chat", "--max-new-tokens", "4", *map(str, arguments)])


def test_the_answer_on_stdout_and_where_it_stands_on_stderr(folder: Path) -> None:
    result = _ask("--docs", folder, "How often is the filter washed?")
    assert result.exit_code == 0 and "pump.md" not in result.stdout
    assert "pump.md, “Pump”, line 3\n" in result.stderr
    assert "documents: 1 read; 1 passages\n" in result.stderr


def test_json_has_the_citations(folder: Path) -> None:
    row = json.loads(_ask("--docs", folder, "--json", "How often is the filter washed?").stdout)
    assert row["citations"] == [
        {
            "number": 1,
            "file": "pump.md",
            "page": None,
            "heading": "Pump",
            "line": 3,
            "cited": "[1]" in row["text"],
            "text": "The filter is washed every two weeks.",
        }
    ]
    nothing = _ask("--docs", folder, "--json", "Opera?")
    assert json.loads(nothing.stdout)["citations"] == []
    assert "nothing in docs fits the question; answered without it\n" in nothing.stderr
    assert "citations" not in json.loads(_ask("--json", "Opera?").stdout)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (
            ("--docs", "/nowhere/at/all"),
            1,
            "error: /nowhere/at/all does not exist; name a folder of documents\n",
        ),
        (
            ("--docs", "/dev/null"),
            1,
            "error: /dev/null is no folder; name one with documents, or a document\n",
        ),
        (
            ("--embedder", "x"),
            2,
            "error: --embedder finds passages in documents; name their folder with --docs\n",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], status: int, said: str) -> None:
    result = _ask(*arguments, "Why?")
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", said)


def test_a_model_that_answers_is_no_embedder(folder: Path, nano: Path) -> None:
    result = _ask("--docs", folder, "--embedder", nano, "Why?")
    assert result.exit_code == 1 and "no embedding model" in result.stderr


def test_the_index_is_kept_and_nobody_else_reads_it(folder: Path, cache: Path) -> None:
    assert "1 read" in _ask("--docs", folder, "filter").stderr
    assert "read" not in _ask("--docs", folder, "filter").stderr
    (index,) = cache.glob("*.sqlite")
    assert index.stat().st_mode & 0o077 == 0 and cache.stat().st_mode & 0o077 == 0
    (folder / "pump.md").write_text("The filter is washed once a year.\n")
    assert "once a year" in _ask("--docs", folder, "--json", "filter").stdout


@pytest.mark.parametrize("damage", ["all", "inside"])
def test_a_damaged_index_is_made_anew(folder: Path, cache: Path, damage: str) -> None:
    _ask("--docs", folder, "filter")
    (index,) = cache.glob("*.sqlite")
    data = index.read_bytes()
    index.write_bytes(b"x" * len(data) if damage == "all" else data[:4096] + b"x" * (len(data) - 4096))
    result = _ask("--docs", folder, "filter")
    assert result.exit_code == 0 and "pump.md" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_cache_that_others_may_write_to_is_not_used(folder: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    result = _ask("--docs", folder, "filter")
    assert "the index of the documents is not kept: others may write to" in result.stderr
    assert "pump.md" in result.stderr and list(cache.iterdir()) == []


def test_old_indexes_go_and_nothing_else(folder: Path, cache: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    old, mine = cache / f"{'0' * 32}.sqlite", cache / "mine.sqlite"
    for file in (old, mine):
        file.touch()
        os.utime(file, (0, 0))
    _ask("--docs", folder, "filter")
    assert not old.exists() and mine.exists()


def test_two_processes_at_once(folder: Path, cache: Path, nano: Path) -> None:
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"Note {number} about the opera. " * 200)
    command = [
        sys.executable,
        "-m",
        "phirt_apps",
        "chat",
        "--docs",
        str(folder),
        "--max-new-tokens",
        "2",
        "opera",
    ]
    runs = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=120)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sum("31 read" in text for text in said) == 1  # the other one found the work done


def test_who_waits_is_told(folder: Path, cache: Path) -> None:
    place = place_module.index_place(folder)
    assert place is not None
    waited = []
    with FileLock(place.with_name(f"{place.name}.lock")) as lock:

        def wait() -> None:
            waited.append(True)
            lock.release()

        with place_module.locked(place, wait):
            pass
    assert waited == [True]


def test_a_session_takes_and_leaves_documents(folder: Path, nano: Path) -> None:
    class Script:
        """Lines from a list."""

        def __init__(self, *lines: str) -> None:
            self._lines = iter(lines)

        def read(self, prompt: str) -> str:
            try:
                return next(self._lines)
            except StopIteration:
                raise EOFError from None

        def poll(self) -> None:
            """Nobody types."""

        def hold(self) -> None:
            """Nothing to hold."""

    model = phirt.load(nano)
    stdout, stderr = io.StringIO(), io.StringIO()
    session = Session(model, model.chat(), Setup({"max_new_tokens": 3}), Output(stdout, stderr))
    lines = (
        "/docs",
        "/docs /nowhere",
        f"/docs {folder}",
        "filter?",
        "/reset",
        "/docs off",
        "filter?",
        "/quit",
    )
    session.run(Script(*lines))
    said = stderr.getvalue()
    assert "/docs needs a folder, or off: /docs FOLDER" in said
    assert "error: /nowhere does not exist" in said
    assert said.count("pump.md, “Pump”, line 3") == 1
