"""Documents of the kinds that text models are trained on, one file a kind.

kinds/web.jsonl          prose, and what a crawl holds beside it     {"id": …, "text": …, "origin": …}
kinds/rewrites.jsonl     pages and entries in other words            {"text": …}
kinds/synthetic.jsonl    schoolbook pages on words and sums
kinds/code.jsonl         modules of Python's standard library
kinds/acquired.jsonl     worked problems, stories, a dictionary
kinds/long.jsonl         whole pages after one another, long enough for a longer context
held_out/prose.jsonl, held_out/code.jsonl, held_out/problems.jsonl     to measure with

Knows the data package's text. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from phirt.fields import Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import write_lines
from phirt_train.preparation import PreparationTask

from ..nano.text import stories, wikipedia
from .code_text import code_pages, library_modules
from .raw_web import french_stories, raw_pages
from .rewrites import number_lessons, rewrites, word_lessons

_Count = Annotated[int, Range(1, 1_000_000)]


@dataclasses.dataclass(frozen=True)
class TextKinds:
    """How much is made of each kind.

    Attributes:
        pages: of prose in the web; `rewritten` further ones are there in other words alone.
        junk: pages of other kinds for each page of prose.
        lessons: schoolbook pages.
        code: pieces of modules.
        entries: of the dictionary.
        long: long documents, of at least `long_characters` characters.
    """

    pages: _Count
    junk: Annotated[float, Range(0.0, 100.0)]
    rewritten: _Count
    lessons: _Count
    code: _Count
    entries: _Count
    long: _Count
    long_characters: Annotated[int, Range(1, 1 << 24)]

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        for name, make in (
            ("kinds/web", self._web),
            ("kinds/rewrites", self._rewrites),
            ("kinds/synthetic", self._synthetic),
            ("kinds/code", self._code),
            ("kinds/acquired", self._acquired),
            ("kinds/long", self._long),
            ("held_out/prose", self._prose),
            ("held_out/code", self._other_code),
            ("held_out/problems", self._other_problems),
        ):
            task.note(f"writing {name}")
            write_lines(task.output / f"{name}.jsonl", make(task.data / "text", task.seed))

    def _web(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        prose = list(itertools.islice(wikipedia(text / "wikipedia.train.jsonl.xz"), self.pages))
        foreign = text / "stories_en_fr.train.jsonl.xz"
        return raw_pages(prose, french_stories(foreign) if foreign.is_file() else [], self.junk, seed)

    def _rewrites(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        records = list(read_records(text / "wikipedia.train.jsonl.xz"))
        chosen = records[-self.rewritten :]  # from the end: the web has those from the beginning
        return _texts(rewrites(((page["title"], page["text"]) for page in chosen), seed))

    def _synthetic(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        entries = list(read_records(text / "wordset.train.jsonl.xz"))
        words, numbers = word_lessons(entries, self.lessons, seed), number_lessons(self.lessons, seed)
        return _texts(page for both in zip(words, numbers, strict=False) for page in both)

    def _code(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(code_pages(library_modules(), self.code, False))

    def _acquired(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        dictionary = itertools.islice(read_records(text / "wordset.train.jsonl.xz"), self.entries)
        yield from _texts(_problems(text, held_out=False))
        yield from _texts(stories(text / "stories.train.jsonl.xz"))
        yield from _texts(f"{one['word']} ({one['part']}): {one['definition']}." for one in dictionary)

    def _long(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(itertools.islice(joined(_pages(text), self.long_characters), self.long))

    def _prose(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(wikipedia(text / "wikipedia.val.jsonl.xz"))

    def _other_code(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(code_pages(library_modules(), 40, True))

    def _other_problems(self, text: Path, seed: int) -> Iterator[dict[str, Any]]:
        return _texts(_problems(text, held_out=True))


def _texts(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    return ({"text": text} for text in texts)


def _pages(text: Path) -> Iterator[str]:
    """Pages from the end of the package, the last one first, again and again."""
    return itertools.cycle(list(wikipedia(text / "wikipedia.train.jsonl.xz"))[::-1])


def _problems(text: Path, held_out: bool) -> Iterator[str]:
    """Word problems with worked answers; every twentieth is held out."""
    path = text / "gsm8k.train.jsonl.xz"
    for index, record in enumerate(read_records(path) if path.is_file() else ()):
        if (index % 20 == 19) == held_out:
            yield f"Problem: {record['question']}\nSolution: {record['answer']}"


def joined(pages: Iterable[str], characters: int) -> Iterator[str]:
    """Pages after one another until each text has so many characters."""
    parts: list[str] = []
    for page in pages:
        parts.append(page)
        if sum(map(len, parts)) >= characters:
            yield "\n\n".join(parts)
            parts = []
