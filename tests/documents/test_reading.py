"""Text of several encodings, Markdown, PDF: what is read, and which single line says why something is not."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pdf_file import locked_pdf, pdf

from phirt_apps.documents import pdf as pdf_module
from phirt_apps.documents import reading
from phirt_apps.documents.files import DocumentError, opened
from phirt_apps.documents.limits import LIMITS, Limits
from phirt_apps.documents.passages import cut
from phirt_apps.documents.pdf import TimeUpError, read_pages
from phirt_apps.documents.reading import Document, Section, read_document, require_readable


def _read(tmp_path: Path, name: str, data: bytes, limits: Limits = LIMITS) -> Document:
    path = tmp_path / name
    path.write_bytes(data)
    with opened(path) as file:
        require_readable(file, name, limits)
        return read_document(file, name, limits)


WORDS = "Müller weiß: 3 € für Tee\n"


@pytest.mark.parametrize(
    "data",
    [
        WORDS.encode(),
        WORDS.encode("utf-8-sig"),
        WORDS.encode("utf-16"),
        b"\xfe\xff" + WORDS.encode("utf-16-be"),
        WORDS.encode("utf-32"),
        WORDS.encode("utf-16-le"),  # without a mark
        WORDS.encode("utf-16-be"),
        WORDS.replace("\n", "\r\n").encode(),
    ],
)
def test_encodings(tmp_path: Path, data: bytes) -> None:
    document = _read(tmp_path, "a.txt", data)
    assert [section.text for section in document.sections] == [WORDS]
    assert document.guess is None and document.remark is None


def test_an_encoding_that_is_guessed_is_said(tmp_path: Path) -> None:
    document = _read(tmp_path, "a.txt", WORDS.encode("cp1252"))
    assert document.sections[0].text == WORDS
    assert document.guess == "is not UTF-8, so it is read as Windows-1252"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "holds no text"),
        (bytes(range(256)) * 8, "is binary, or of an encoding that is not known; save it as UTF-8"),
        (b"\0" * 5000, "is binary, or of an encoding that is not known; save it as UTF-8"),
        (
            b"\x89PNG\r\n\x1a\n" + bytes(200),
            "is binary, or of an encoding that is not known; save it as UTF-8",
        ),
        (b"x" * 1001, "has 1.0 kB; at most 1.0 kB of text are read"),
        (b"%PDF-1.7 nothing more", "is no PDF that can be read: it is damaged, or not a PDF at all"),
        (locked_pdf(), "is encrypted: a password is needed to read it; save a copy without one"),
        (pdf([[""], [""]]), "holds no text on its 2 pages; pictures of pages cannot be searched"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        _read(
            tmp_path, "a.txt", data, Limits(text_bytes=5000 if data[:1] == b"\0" else 1000 + len(data) % 1001)
        )
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_markdown_has_headings_and_lines(tmp_path: Path) -> None:
    text = (
        "Before.\n"
        "# Pump #\n"
        "\n"
        "Text.\n"
        "```sh\n"
        "# no heading\n"
        "```\n"
        "## Filter\n"
        "Wash it.\n"
        "\n"
        "Warranty\n"
        "========\n"
        "Three years.\n"
        "#hashtag\n"
    )
    sections = _read(tmp_path, "a.md", text.encode()).sections
    assert [(section.heading, section.line, section.text) for section in sections] == [
        (None, 1, "Before."),
        ("Pump", 3, "\nText.\n```sh\n# no heading\n```"),
        ("Pump › Filter", 9, "Wash it."),
        ("Warranty", 13, "Three years.\n#hashtag"),
    ]
    assert [section.heading for section in _read(tmp_path, "a.txt", text.encode()).sections] == [None]


def test_a_pdf_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    document = _read(tmp_path, "a.txt", pdf([["On the first page."], [""], ["Ünïcode (in) brackets."]]))
    assert [(section.page, section.text) for section in document.sections] == [
        (1, "On the first page."),
        (3, "Ünïcode (in) brackets."),
    ]


def test_a_long_pdf_is_read_in_part(tmp_path: Path) -> None:
    data = pdf([["one"], ["two"], ["three"]])
    document = _read(tmp_path, "a.pdf", data, Limits(pdf_pages=2))
    assert [section.text for section in document.sections] == ["one", "two"]
    assert document.remark == "is read up to page 2 of 3, as it is very long"


def test_a_pdf_that_takes_for_ever_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"cannot be read: it took longer than 0 s"):
        _read(tmp_path, "a.pdf", pdf([["one"]]), Limits(pdf_seconds=0))


def test_a_pdf_that_ends_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a fault in PDFium would, or memory without end: on the first page, or behind it."""
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(pdf_module, "_WORKER", worker)
    worker.write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(DocumentError, match="made its reader fail, so it is damaged"):
        _read(tmp_path, "a.pdf", pdf([["one"]]))
    page = '{"page": 1, "text": "one \\\\ud800"}'  # half of a pair of UTF-16, which no file can hold
    worker.write_text(f"import os; print('{page}', flush=True); os.write(1, b'{{'); os.kill(os.getpid(), 9)")
    document = _read(tmp_path, "a.pdf", pdf([["one"]]))
    assert [section.text for section in document.sections] == ["one ?"]
    assert document.remark == (
        "is read up to page 1: it made its reader fail, so it is damaged or made to do that"
    )


def test_what_lies_in_the_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads PDFs starts in the user's folder, where a pypdfium2.py may lie."""
    (tmp_path / "pypdfium2.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert len(_read(tmp_path, "a.pdf", pdf([["one"]])).sections) == 1


def test_pages_are_read_from_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf([["one"]]))
    with opened(path) as file:
        file.seek(0, io.SEEK_END)
        assert read_pages(file, LIMITS).texts == ((1, "one"),)


def test_a_text_about_pdf_is_no_pdf(tmp_path: Path) -> None:
    """It names the five bytes with which one begins; a PDF with something before them says so in its name."""
    text = "Each file begins with %PDF- and its version.\n"
    for name in ("a.txt", "a.md", "README"):
        assert [section.text.strip() for section in _read(tmp_path, name, text.encode()).sections] == [
            text.strip()
        ]
    junk = b"HTTP/1.1 200 OK\r\n\r\n" + pdf([["one"]])
    assert [section.page for section in _read(tmp_path, "A.PDF", junk).sections] == [1]
    assert [section.page for section in _read(tmp_path, "a", b"\xef\xbb\xbf\n" + junk[19:]).sections] == [1]


def test_the_first_part_of_a_page_that_is_too_long(tmp_path: Path) -> None:
    data = pdf([["0123456789"], ["abc"]])
    document = _read(tmp_path, "a.pdf", data, Limits(characters=4))
    assert [(section.page, section.text) for section in document.sections] == [(1, "0123")]
    assert document.remark == "is read up to page 1 of 2, as it is very long"
    whole = _read(tmp_path, "a.pdf", data, Limits(characters=10))  # nothing of the second page fits
    assert [section.text for section in whole.sections] == ["0123456789"]
    assert whole.remark == "is read up to page 1 of 2, as it is very long"


def test_pictures_of_pages_that_were_not_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether what is left holds text is not known: of a reader that failed, a late one, a long file."""
    data = pdf([[""], [""], [""]])
    with pytest.raises(DocumentError) as caught:
        _read(tmp_path, "a.pdf", data, Limits(pdf_pages=2))
    assert str(caught.value) == (
        "holds no text on the pages that were read; it is read up to page 2 of 3, as it is very long"
    )
    page = b'{"page": 1, "text": ""}\n{'
    monkeypatch.setattr(pdf_module, "_run", lambda file, limits: (page, 1))
    with pytest.raises(DocumentError, match=r"were read; it is read up to page 1: it made its reader fail"):
        _read(tmp_path, "a.pdf", data)
    monkeypatch.setattr(pdf_module, "_run", lambda file, limits: (page, None))
    with pytest.raises(TimeUpError, match=r"were read; it is read up to page 1: it took longer than 60 s"):
        _read(tmp_path, "a.pdf", data)


@pytest.mark.skipif(os.name != "posix", reason="nothing bounds a process there")
def test_the_reader_of_a_pdf_bounds_itself(tmp_path: Path) -> None:
    """It would go on where phirt is killed. What stands for PDFium writes the bounds that it finds."""
    (tmp_path / "pypdfium2.py").write_text(
        "import resource as r; print([r.getrlimit(one) for one in (r.RLIMIT_CPU, r.RLIMIT_CORE)]); exit(0)"
    )
    run = subprocess.run(
        [sys.executable, "-P", str(pdf_module._WORKER), "1", "1", str(1 << 40), "7"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
    )
    assert run.stdout == "[(7, 7), (0, 0)]\n"


def test_the_bound_of_the_reader_is_that_of_phirt_and_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import json, sys; print(json.dumps({'page': 1, 'text': ' '.join(sys.argv[1:])}))")
    monkeypatch.setattr(pdf_module, "_WORKER", worker)
    document = _read(tmp_path, "a.pdf", pdf([["one"]]), Limits(2, 2, 9999, 9999, 3, 59.5, 5, 4))
    assert [section.text for section in document.sections] == ["3 4 5 61"]


def test_sections_of_markdown_are_made_as_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million headings in one file, of which a few passages are kept."""
    made = []
    monkeypatch.setattr(
        reading, "Section", lambda *place, **rest: made.append(rest) or Section(*place, **rest)
    )
    document = _read(tmp_path, "a.md", b"# a\nb\n" * 1_000)
    assert [passage.text for passage in itertools.islice(cut(document.sections), 3)] == ["b", "b", "b"]
    assert len(made) == 3
