"""The index, brought up to date and searched: what is new, changed, gone, half done, in any writing."""

from __future__ import annotations

import sqlite3
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from pdf_file import pdf

from phirt_apps.documents import pdf as pdf_module
from phirt_apps.documents import updating
from phirt_apps.documents.index import Index
from phirt_apps.documents.limits import LIMITS, Limits
from phirt_apps.documents.passages import Passage
from phirt_apps.documents.retrieval import fts_query, fused, search
from phirt_apps.documents.updating import Update


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "docs"
    place.mkdir()
    (place / "pump.md").write_text("# Pump\n\nThe filter is washed every two weeks.\n")
    (place / "tea.txt").write_text("Green tea is made with water of eighty degrees.\n")
    return place


@pytest.fixture
def index(tmp_path: Path):
    opened = Index(tmp_path / "index.sqlite")
    yield opened
    opened.close()


def _update(index: Index, folder: Path, embedder=None, limits: Limits = LIMITS) -> Update:
    return updating.update(index, folder, embedder, limits, lambda *progress: None)


def _files(index: Index, question: str, embedder=None, former: str | None = None) -> list[str]:
    return [entry.file for entry in search(index, embedder, question, former, 4)]


def test_words_find_their_passage_whatever_their_ending(index: Index, folder: Path) -> None:
    assert _update(index, folder).read == 2
    assert _files(index, "How often are the filters to be washed?") == ["pump.md"]
    assert _files(index, "When is the opera?") == []
    assert _files(index, '" OR (NEAR* : ^ tea -') == ["tea.txt"]  # nothing of FTS5's language passes
    (entry,) = search(index, None, "filter", None, 4)
    assert entry.passage == Passage("The filter is washed every two weeks.", None, "Pump", 3)


def test_a_file_changed_touched_new_or_gone(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _update(index, folder)
    again = _update(index, folder)
    assert (again.read, again.dropped, again.lines) == (0, 0, [])
    (folder / "tea.txt").write_text("Black tea is made with water that boils....\n")  # of the same length
    (folder / "pump.md").unlink()
    (folder / "new.txt").write_text("The opera begins at eight.")
    done = _update(index, folder)
    assert (done.read, done.dropped) == (2, 1)
    assert _files(index, "filter") == [] and _files(index, "eighty") == []
    assert _files(index, "boils") == ["tea.txt"] and _files(index, "opera") == ["new.txt"]
    (folder / "new.txt").touch()
    monkeypatch.setattr(updating, "read_document", None)  # a file that says the same is not read
    assert _update(index, folder).read == 0


def test_a_file_that_is_old_is_not_looked_into_again(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updating, "_TICK_NS", 0)
    _update(index, folder)
    monkeypatch.setattr(updating, "opened", None)
    _update(index, folder)


def test_what_is_bad_is_one_line_and_the_rest_goes_on(index: Index, folder: Path) -> None:
    (folder / "bad.pdf").write_bytes(b"%PDF-1.7\n" + b"1 0 obj << /Kids [1 0 R] >> endobj\n" * 500)
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    (folder / "good.pdf").write_bytes(pdf([["Nothing."], ["The opera begins at eight."]]))
    done = _update(index, folder, limits=Limits(text_bytes=1000))
    assert done.lines == [
        "bad.pdf is no PDF that can be read: it is damaged, or not a PDF at all",
        "binary.txt is binary, or of an encoding that is not known; save it as UTF-8",
    ]
    assert done.read == 3
    (entry,) = search(index, None, "opera", None, 4)
    assert (entry.file, entry.passage.page) == ("good.pdf", 2)
    assert _update(index, folder).former == ["bad.pdf", "binary.txt"]


def test_without_what_reads_pdfs_they_wait(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.pdf").write_bytes(pdf([["The opera begins at eight."]]))
    with monkeypatch.context() as patch:
        patch.setattr(pdf_module.importlib.util, "find_spec", lambda name: None)
        assert _update(index, folder).no_pdf == ["a.pdf"]
    assert _update(index, folder).read == 1 and _files(index, "opera") == ["a.pdf"]


def test_passages_have_a_limit(index: Index, folder: Path) -> None:
    done = _update(index, folder, limits=Limits(passages=1))
    assert index.count() == 1
    assert done.lines == ["tea.txt is read in part: 1 passages are kept of a folder at most"]


def test_what_was_stopped_goes_on(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(file: object, name: str, limits: Limits) -> None:
        if name == "tea.txt":
            raise KeyboardInterrupt
        return real(file, name, limits)

    real = updating.read_document
    monkeypatch.setattr(updating, "read_document", stop)
    with pytest.raises(KeyboardInterrupt):
        _update(index, folder)
    monkeypatch.setattr(updating, "read_document", real)
    assert _update(index, folder).read == 1
    assert _files(index, "tea") == ["tea.txt"] and _files(index, "filter") == ["pump.md"]


def test_writing_without_spaces(index: Index, folder: Path) -> None:
    (folder / "ja.txt").write_text("猫は一日に十六時間眠ります。", encoding="utf-8")
    _update(index, folder)
    assert _files(index, "猫は何時間眠りますか") == ["ja.txt"]


def test_vectors_find_other_words(index: Index, folder: Path, meanings) -> None:
    (folder / "pets.txt").write_text("A kitten sleeps most of the day.")
    _update(index, folder)  # without vectors at first
    assert _files(index, "feline") == []
    _update(index, folder, meanings)
    assert _files(index, "feline", meanings) == ["pets.txt"]
    assert "pets: A kitten sleeps most of the day." in meanings.texts  # with what its file is called
    assert meanings.prompts == [None, "query"]
    before = len(meanings.texts)
    _update(index, folder, meanings)
    assert len(meanings.texts) == before


def test_another_encoder_has_vectors_of_its_own(index: Index, folder: Path, meanings) -> None:
    _update(index, folder, meanings)
    other = type(meanings)("second")
    _update(index, folder, other)
    assert len(other.texts) == index.count() == 2


def test_a_question_that_goes_on_from_the_last_one(index: Index, folder: Path) -> None:
    _update(index, folder)
    assert _files(index, "And why?") == []
    assert _files(index, "And why?", former="How is the filter washed?") == ["pump.md"]


def test_ranks_are_fused_by_their_reciprocals() -> None:
    # 1/61 + 1/62 for 2, 1/61 for 1, 1/62 for 3: by hand.
    assert fused([(1.0, [1, 2]), (1.0, [2, 3])]) == [2, 1, 3]
    assert fused([(1.0, [1]), (1.0, [2])]) == [1, 2]
    assert fused([(0.3, [1]), (1.0, [2])]) == [2, 1]


def test_words_of_questions_do_not_count() -> None:
    assert fts_query("What is the capital of France?") == '"capital" OR "france"'
    assert fts_query("Who are you?") == '"who" OR "are" OR "you"'
    assert fts_query("?!") == ""


def test_an_index_is_for_its_user_alone(tmp_path: Path) -> None:
    Index(tmp_path / "i.sqlite").close()
    assert (tmp_path / "i.sqlite").stat().st_mode & 0o077 == 0


def test_what_is_no_index_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "i.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        Index(tmp_path / "i.sqlite")
    assert (tmp_path / "i.sqlite").read_bytes() == b"something else entirely" * 100


def test_a_question_that_does_not_go_on_finds_nothing_of_the_last_one(
    index: Index, folder: Path, meanings
) -> None:
    former = "How is the filter of the pump washed?"
    _update(index, folder, meanings)
    for embedder in (None, meanings):
        assert _files(index, "Thanks! Now tell me a joke.", embedder, former) == []
        assert _files(index, "How is green tea made?", embedder, former) == ["tea.txt"]


def test_the_last_question_has_a_say_in_what_the_new_one_finds(index: Index, folder: Path) -> None:
    """By words alone all rank as their names do; the one that is last with both questions loses its place."""
    for name in "abcdefg":
        thing = "lamp" if name == "a" else "oven"
        (folder / f"{name}.txt").write_text(f"The price of the {thing} is four euros.")
    _update(index, folder)
    assert _files(index, "And the price?") == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert _files(index, "And the price?", former="Who makes the oven?")[0] == "b.txt"


def test_a_question_that_refers_to_the_last_one(index: Index, folder: Path) -> None:
    _update(index, folder)
    assert _files(index, "How expensive is it?", former="Which filter has the pump?") == ["pump.md"]


def test_small_words_of_a_question_that_goes_on_find_nothing_by_themselves(
    index: Index, folder: Path
) -> None:
    (folder / "why.txt").write_text("And why not? And why, and why, and why?")
    _update(index, folder)
    assert _files(index, "And why?", former="How is the filter washed?") == ["pump.md"]


def test_a_long_question_before_does_not_hide_the_new_one(index: Index, folder: Path, meanings) -> None:
    _update(index, folder, meanings)
    former = " ".join(f"word{number}" for number in range(2_000))
    assert _files(index, "Is it washed?", meanings, former) == ["pump.md"]
    both = meanings.texts[-1]
    assert both.startswith("Is it washed? word0 word1 ")
    assert fts_query(both).startswith('"washed" OR "word0"')


def test_vectors_are_read_once_and_not_copied(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, count = 256, 4_000
    index.put("a.txt", "", "", [Passage(f"text {number}", None, None, None) for number in range(count)])
    ids = [entry.id for entry in index.without_vector(count)]
    kept = np.random.default_rng(0).standard_normal((count, width), np.float32)
    index.put_vectors(ids, kept)
    read = []

    def counted(width: int) -> object:
        read.append(width)
        return real(width)

    class Fixed:
        """Finds the passages 7 and 11 with its two texts."""

        manifest = SimpleNamespace(prompts={})

        def __init__(self) -> None:
            self.width = width

        def embed(self, texts: list[str], prompt: str | None) -> npt.NDArray[np.float32]:
            """Vectors near those."""
            assert len(texts) == 2
            return 3 * kept[[7, 11]]

    real = index.vectors
    monkeypatch.setattr(index, "vectors", counted)
    tracemalloc.start()
    try:
        found = search(index, Fixed(), "Is it 7?", "Is it 11?", 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[0].id == ids[7]
    assert read == [width]
    assert peak < 1.3 * kept.nbytes
    got_ids, got = real(width)
    assert got_ids.tolist() == ids and np.array_equal(got, kept)
    assert real(3)[1].shape == (0, 3)
