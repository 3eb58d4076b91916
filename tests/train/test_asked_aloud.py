"""Spoken questions about pictures are kept where a recogniser hears their words; both are made up here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from phirt_train.data.messages import assistant, user, write_lines
from phirt_train.preparation import PreparationTask
from phirt_train.progress import ignore
from recipes.reports import asked_aloud
from recipes.reports.asked_aloud import AskedAloud


class _Ears:
    """Hears what a recording, here a text, says; of what is mumbled, other words."""

    def transcribe(self, path: Path) -> str:
        said = path.read_text(encoding="utf-8")
        return "was it a boat" if said.startswith("Mumbled") else said.upper()


def _spoken(texts: Iterable[str], seed: int) -> Iterator[tuple[str, bytes]]:
    return ((text, text.encode()) for text in texts)


def _asked(folder: Path, questions: Sequence[str], worst: float) -> list[str]:
    talks = [[user(text, ["../a.png"]), assistant(f"{number}")] for number, text in enumerate(questions)]
    write_lines(folder / "talks/some.jsonl", ({"messages": talk} for talk in talks))
    task = PreparationTask(folder, folder, 1, ignore)
    AskedAloud(questions=len(questions), sources=("some",), worst=worst).write(task)
    path = folder / "talks/asked_aloud.jsonl"
    kept = [json.loads(line)["messages"] for line in path.open()] if path.is_file() else []
    for turn, _ in kept:  # the picture, and a recording in the place of the words
        assert turn["content"] == "" and turn["images"] == ["../a.png"]
    return [
        f"{answer['content']} {(path.parent / turn['audio'][0]).read_text()}" for turn, answer in sorted(
            kept, key=lambda talk: str(talk[1]["content"])
        )
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_aloud, "is_installed", lambda: True)
    monkeypatch.setattr(asked_aloud, "spoken", _spoken)
    monkeypatch.setattr(asked_aloud.phirt, "load", _Ears)


def test_a_question_is_kept_where_its_words_are_heard(tmp_path: Path) -> None:
    questions = ("What is it?", "Mumbled, is this seen at all?", "Which fruit is shown?", "Are there 3?")
    # Digits are written otherwise than heard: such a question is not asked.
    assert _asked(tmp_path, questions, 0.3) == ["0 What is it?", "2 Which fruit is shown?"]


def test_nothing_is_written_where_nothing_is_understood(tmp_path: Path) -> None:
    assert _asked(tmp_path, ("Mumbled, is this seen at all?",), 0.0) == []
