"""Texts that nobody would call good, made on this machine for the quality classifier to tell apart: what
installed packages say of themselves, the standard library's source, and good pages spoiled.

Each is a file of JSON lines with "text" and "group". Texts of a group come from one package, module or page,
so that a part can be held out without its neighbours. Knows where such texts lie. Knows nothing of training.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from phirt.runtime.atomic_file import atomic_write

PIECE_CHARACTERS = 3000  # of a long text: as a page of the good ones has
_LEAST_CHARACTERS = 300
_MOST_PIECES = 6  # of one package or module, so that no large one outweighs the others
_DOCUMENT = re.compile(
    r"(?:readme|changes|changelog|history|news|authors|notice)[^/]*\.(?:md|rst|txt)$", re.IGNORECASE
)

Piece = tuple[str, str]  # group, text


def package_texts() -> Iterator[Piece]:
    """Descriptions, READMEs and changelogs of the packages installed here, sorted by name."""
    found = {one.metadata["Name"]: one for one in importlib.metadata.distributions() if one.metadata["Name"]}
    for name in sorted(found, key=str.lower):
        package = found[name]
        texts = [package.read_text("METADATA") or package.read_text("PKG-INFO") or ""]
        for file in package.files or ():
            if _DOCUMENT.search(str(file)):
                texts.append(_contents(Path(str(file.locate()))))
        yield from ((name, piece) for piece in _pieces("\n".join(texts)))


def standard_library_texts() -> Iterator[Piece]:
    """The source of Python's standard library, module by module."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.glob("*.py")):
        yield from ((path.stem, piece) for piece in _pieces(_contents(path)))


def corruptions(pages: Iterable[str], seed: int = 0) -> Iterator[Piece]:
    """Good pages, each spoiled in one of the ways in which pages of the web are spoiled."""
    ways = (_shuffled, _furnished, _cut_off, _repeated, _garbled)
    for number, page in enumerate(pages):
        chance = random.Random(f"{seed} {number}")
        yield f"page {number}", ways[number % len(ways)](page[:PIECE_CHARACTERS], chance)


def write_pieces(path: Path, pieces: Iterable[Piece]) -> int:
    """Writes a file of records; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        for group, text in pieces:
            line = json.dumps({"text": text, "group": group}, ensure_ascii=False)
            stream.write(line.encode("utf-8", "surrogatepass") + b"\n")
            count += 1
    return count


def _contents(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a list of files may name some that are gone
        return ""


def _pieces(text: str) -> Iterator[str]:
    for number, at in enumerate(range(0, len(text), PIECE_CHARACTERS)):
        piece = text[at : at + PIECE_CHARACTERS]
        if number < _MOST_PIECES and len(piece) >= _LEAST_CHARACTERS:
            yield piece


def _shuffled(page: str, chance: random.Random) -> str:
    """Words in any order, as of pages made for search engines."""
    words = page.split()
    chance.shuffle(words)
    return " ".join(words)


def _furnished(page: str, chance: random.Random) -> str:
    """More of the page's furniture than of the page."""
    menu = (
        "Home", "Log in", "Sign up", "Share this", "Click here", "Read more", "Subscribe to our newsletter",
        "All rights reserved", "Privacy policy", "Terms of use", "Add to cart", "Free shipping", "Next",
        "Previous",         "Leave a comment", "Related posts", "Contact us", "Follow us",
    )  # fmt: skip
    sentences = page.split(". ")[: chance.randint(2, 6)]
    lines = [*chance.choices(menu, k=30), *sentences]
    chance.shuffle(lines)
    return "\n".join(lines)


def _cut_off(page: str, chance: random.Random) -> str:
    """Beginnings of lines that end in dots, as of a list of search results."""
    words = page.split()
    starts = [chance.randrange(max(1, len(words) - 8)) for _ in range(25)]
    return "\n".join(" ".join(words[at : at + chance.randint(4, 8)]) + " ..." for at in starts)


def _repeated(page: str, chance: random.Random) -> str:
    """A few sentences again and again."""
    sentences = page.split(". ")
    chosen = chance.sample(sentences, k=min(3, len(sentences)))
    return ". ".join(chosen * 8)


def _garbled(page: str, chance: random.Random) -> str:
    """Letters lost and changed, as of a bad scan."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789|~^"
    return "".join(
        chance.choice(letters) if (draw := chance.random()) < 0.08 else "" if draw < 0.14 else character
        for character in page
    )
