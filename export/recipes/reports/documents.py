"""Documents as pictures of their pages, with questions whose answer stands on one of them.

talks/documents.<split>.jsonl    the pages of a form, and a question about an entry

Knows how a page is set and what stands on it. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from phirt.fields import Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.preparation import PreparationTask

from ..nano.shapes import WORDS

_HELD_OUT = 100
_FIELDS = ("Name", "Town", "Item", "Price", "Code", "Date", "Room", "Colour")
_COLOURS = ("red", "green", "blue", "yellow", "black", "white")
_MONTHS = ("January", "March", "May", "July", "October", "December")
_PAPER, _INK = (252, 252, 248), (20, 20, 20)
_SPLITS = {"train": 0, "val": 1}

Entries = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Documents:
    """Pages of forms.

    Attributes:
        documents: how many.
        pages: of each.
        entries: of a page.
        side: of a page, in pixels.
    """

    documents: Annotated[int, Range(1, 1_000_000)] = 500
    pages: Annotated[int, Range(1, 64)] = 4
    entries: Annotated[int, Range(1, len(_FIELDS))] = 3
    side: Annotated[int, Range(32, 4096)] = 128

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        towns = [
            record["capital"]
            for record in read_records(task.data / "text/countries.train.jsonl.xz")
            if record.get("capital")
        ]
        for split, number in _SPLITS.items():
            task.note(f"setting documents.{split}")
            talks = ({"messages": talk} for talk in self._talks(task, split, number, towns))
            write_lines(task.output / f"talks/documents.{split}.jsonl", talks)

    def _talks(
        self, task: PreparationTask, split: str, number: int, towns: Sequence[str]
    ) -> Iterator[Conversation]:
        folder = task.output / f"media/documents.{split}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(self.documents if split == "train" else min(self.documents, _HELD_OUT)):
            rng = np.random.default_rng((task.seed, number, index))
            paths, pages = [], [_entries(rng, self.entries, towns) for _ in range(self.pages)]
            for page, entries in enumerate(pages):
                name = f"{index:05}_{page}.png"
                draw_page(entries, page + 1, self.side).save(folder / name, compress_level=1)
                paths.append(f"../media/documents.{split}/{name}")
            page = int(rng.integers(self.pages))
            field, value = pages[page][int(rng.integers(self.entries))]
            asked = f"What is the {field.lower()} on page {page + 1}?"
            yield [user(asked, paths), assistant(value)]


def _entries(rng: np.random.Generator, count: int, towns: Sequence[str]) -> Entries:
    """Some of the fields with values, in the form's order."""
    values = {
        "Name": str(rng.choice(WORDS)).capitalize(),
        "Town": towns[int(rng.integers(len(towns)))],
        "Item": str(rng.choice(WORDS)),
        "Price": str(int(rng.integers(1, 100))),
        "Code": str(int(rng.integers(100, 1000))),
        "Date": f"{rng.integers(1, 29)} {rng.choice(_MONTHS)}",
        "Room": str(int(rng.integers(1, 60))),
        "Colour": str(rng.choice(_COLOURS)),
    }
    chosen = sorted(int(place) for place in rng.choice(len(_FIELDS), count, replace=False))
    return [(_FIELDS[place], values[_FIELDS[place]]) for place in chosen]


def draw_page(entries: Entries, number: int, side: int) -> Image.Image:
    """A page: its number, and an entry a line, as large as the page allows."""
    image = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(image)
    lines = [f"Page {number}", *(f"{field}: {value}" for field, value in entries)]
    height = side / (len(lines) + 0.5)
    for index, line in enumerate(lines):
        size = min(height * 0.7, side * 0.14)
        while (font := ImageFont.load_default(size)).getlength(line) > side * 0.94 and size > 6:
            size *= 0.9
        draw.text((side * 0.03, (index + 0.2) * height), line, font=font, fill=_INK)
    return image
