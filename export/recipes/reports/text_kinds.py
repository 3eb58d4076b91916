"""Documents of the kinds that text models are trained on, one file a kind.

kinds/web.jsonl          prose, and what a crawl holds beside it     {"id": …, "text": …, "origin": …}
kinds/prose.jsonl        the prose of the web alone, as a perfect filter would leave it
kinds/rewrites.jsonl     pages in other words                        {"text": …}
kinds/synthetic.jsonl    schoolbook pages on words, countries, sums, as far as a review keeps them
kinds/code.jsonl         Python's standard library
kinds/acquired.jsonl     worked problems, stories, a dictionary
kinds/long.jsonl         whole pages after one another, long enough for a longer context
kinds/recall.jsonl       as long, made: facts hidden in them, and asked for at the end
held_out/prose.jsonl, held_out/long.jsonl, held_out/code.jsonl, held_out/problems.jsonl     to measure with

Knows the data package's text. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from phirt.fields import Matching, Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import write_lines
from phirt_train.data.records import Document
from phirt_train.preparation import PreparationTask
from phirt_train.synthetic.code import library_code
from phirt_train.synthetic.recall import recall_documents
from phirt_train.synthetic.review import Review, few_letters, length, seen_before, unfilled
from phirt_train.synthetic.textbook import country_pages, list_pages, sum_pages, word_pages

from ..nano.text import stories, wikipedia
from .held_out import is_held_out, worked_problems
from .raw_web import french_stories, raw_pages
from .rewrites import rewrites, sentences

_Count = Annotated[int, Range(1, 1_000_000)]
_CODE_CHARACTERS = 8000  # of a piece of a module
_HELD_OUT_MODULES = 10  # of so many modules one
_PAGES = "wikipedia.train.jsonl.xz"


@dataclasses.dataclass(frozen=True)
class TextKinds:
    """How much is made of each kind.

    Attributes:
        pages: of prose in the web; `rewritten` further ones are there in other words alone.
        junk: pages of other kinds for each page of prose.
        lessons: schoolbook pages on words, and as many on sums.
        code: pieces of modules, of the part of the standard library that `library` names (empty: of all).
        entries: of the dictionary.
        long: long documents of either sort, of at least `long_characters` characters.
        held_out: most texts of each kind to measure with.
    """

    pages: _Count
    junk: Annotated[float, Range(0.0, 100.0)]
    rewritten: _Count
    lessons: _Count
    code: _Count
    entries: _Count
    long: _Count
    long_characters: Annotated[int, Range(1, 1 << 24)]
    held_out: _Count = 100
    library: Annotated[str, Matching("[a-z_/]{0,100}", "a folder of the standard library")] = ""

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        for name, make in (
            ("kinds/web", self._web),
            ("kinds/prose", self._prose),
            ("kinds/rewrites", self._rewrites),
            ("kinds/synthetic", self._synthetic),
            ("kinds/code", self._code),
            ("kinds/acquired", self._acquired),
            ("kinds/long", self._long),
            ("kinds/recall", self._recall),
            ("held_out/prose", self._other_prose),
            ("held_out/long", self._other_long),
            ("held_out/code", self._other_code),
            ("held_out/problems", self._other_problems),
        ):
            task.note(f"writing {name}")
            write_lines(task.output / f"{name}.jsonl", make(task.data / "text", task.seed))

    def _web(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        prose = list(itertools.islice(wikipedia(text / _PAGES), self.pages))
        foreign = text / "stories_en_fr.train.jsonl.xz"
        return raw_pages(prose, french_stories(foreign) if foreign.is_file() else [], self.junk, seed)

    def _prose(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(itertools.islice(wikipedia(text / _PAGES), self.pages))

    def _rewrites(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        chosen = list(read_records(text / _PAGES))[-self.rewritten :]  # the web has those from the beginning
        return _texts(rewrites(((page["title"], page["text"]) for page in chosen), seed))

    def _synthetic(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        senses = list(read_records(text / "wordset.train.jsonl.xz"))
        lists = text / "corpora.train.jsonl.xz"
        pages = (
            word_pages(senses, self.lessons, seed),
            sum_pages(self.lessons, seed, is_measured=is_held_out),
            country_pages(read_records(text / "countries.train.jsonl.xz"), seed),
            list_pages(read_records(lists) if lists.is_file() else (), seed),
        )
        review = Review[str](lambda text: text, (length(20, 2000), unfilled, few_letters, seen_before()))
        made = (one.text for several in itertools.zip_longest(*pages) for one in several if one is not None)
        return _texts(review.keep(made))

    def _code(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(itertools.islice(self._modules(seed, held_out=False), self.code))

    def _acquired(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        dictionary = itertools.islice(read_records(text / "wordset.train.jsonl.xz"), self.entries)
        yield from _texts(_problems(text, held_out=False))
        yield from _texts(stories(text / "stories.train.jsonl.xz"))
        yield from _texts(f"{one['word']} ({one['part']}): {one['definition']}." for one in dictionary)

    def _long(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        pages = list(wikipedia(text / _PAGES))[::-1]
        return _texts(itertools.islice(joined(pages, self.long_characters), self.long))

    def _recall(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        pages = itertools.islice(read_records(text / _PAGES), 200)
        said = [sentence for page in pages for sentence in sentences(page["text"])]
        made = recall_documents(said, self.long, self.long_characters, len, seed)
        return _texts(one.text for one in made)

    def _other_prose(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(itertools.islice(wikipedia(text / "wikipedia.val.jsonl.xz"), self.held_out))

    def _other_long(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        pages = list(wikipedia(text / "wikipedia.val.jsonl.xz"))
        return _texts(itertools.islice(joined(pages, self.long_characters), self.long))

    def _other_code(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(itertools.islice(self._modules(seed, held_out=True), self.held_out))

    def _other_problems(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(itertools.islice(_problems(text, held_out=True), self.held_out))

    def _modules(self, seed: int, *, held_out: bool) -> Iterator[str]:
        """Pieces of modules in random order; those held out are of other modules."""
        root = Path(sysconfig.get_paths()["stdlib"])
        modules = list(library_code(root / self.library if self.library else None))
        for index in np.random.default_rng((seed, 75)).permutation(len(modules)):
            if (index % _HELD_OUT_MODULES == _HELD_OUT_MODULES // 5) == held_out:
                yield from _pieces(modules[index])


def _texts(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    return ({"text": text} for text in texts)


def _problems(text: Path, *, held_out: bool) -> Iterator[str]:
    """Word problems with worked answers."""
    for record in worked_problems(text, held_out=held_out):
        yield f"Problem: {record['question']}\nSolution: {record['answer']}"


def _pieces(module: Document) -> Iterator[str]:
    """The module in pieces that begin where a line does."""
    piece = ""
    for line in module.text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > _CODE_CHARACTERS:
            yield piece
            piece = ""
        piece += line
    if piece.strip():
        yield piece


def joined(pages: Iterable[str], characters: int) -> Iterator[str]:
    """Pages after one another until each text has so many characters; begins again where pages end."""
    parts: list[str] = []
    size = 0
    for page in itertools.cycle(pages):
        parts.append(page)
        size += len(page) + 2
        if size >= characters:
            yield "\n\n".join(parts)
            parts, size = [], 0
