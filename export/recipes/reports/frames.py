"""Conversations about several pictures that belong together: films, boxes side by side, pages of a story.

talks/films.<split>.jsonl      frames of a drawn film, and a question about all of them
talks/films_long.<split>.jsonl the same with more frames
talks/boxes_apart.<split>.jsonl the three boxes of nlvr, a picture each, and whether a sentence holds for them
talks/story_order.jsonl        pages of a story: which of them a sentence stands on

Knows the data package's pictures and films. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from phirt.fields import Range
from phirt_train.data.archives import read_media
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.preparation import PreparationTask

from .clips import draw_film

_HELD_OUT = 200
_PAGES = ("first", "second", "third")
_WORDS = 12  # a sentence that is looked for is no longer
_SPLITS = {"train": 0, "val": 1}


@dataclasses.dataclass(frozen=True)
class Frames:
    """Several pictures a question.

    Attributes:
        films, long_films: drawn films, and those with more frames.
        frames, long_frames: of each of them.
        side: of a frame, in pixels.
        stories: questions about pages.
    """

    films: Annotated[int, Range(1, 1_000_000)] = 2000
    long_films: Annotated[int, Range(1, 1_000_000)] = 500
    frames: Annotated[int, Range(2, 8)] = 3
    long_frames: Annotated[int, Range(2, 8)] = 8
    side: Annotated[int, Range(32, 4096)] = 128
    stories: Annotated[int, Range(1, 1_000_000)] = 1000

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        for split in _SPLITS:
            task.note(f"drawing films.{split}")
            _write(task, f"films.{split}", self._films(task, "films", split, self.films, self.frames))
            longer = self._films(task, "films_long", split, self.long_films, self.long_frames)
            _write(task, f"films_long.{split}", longer)
            task.note(f"cutting nlvr.{split}")
            _write(task, f"boxes_apart.{split}", _boxes(task, split))
        _write(task, "story_order", self._stories(task))

    def _films(
        self, task: PreparationTask, kind: str, split: str, count: int, frames: int
    ) -> Iterator[Conversation]:
        folder = task.output / f"media/{kind}.{split}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count if split == "train" else min(count, _HELD_OUT)):
            rng = np.random.default_rng((task.seed, frames, _SPLITS[split], index))
            film = draw_film(rng, self.side, frames)
            paths = []
            for place, frame in enumerate(film.frames):
                name = f"{index:05}_{place}.png"
                frame.save(folder / name, compress_level=1)
                paths.append(f"../media/{kind}.{split}/{name}")
            yield [user(film.question, paths), assistant(film.answer)]

    def _stories(self, task: PreparationTask) -> Iterator[Conversation]:
        """Three pages in a row, and a sentence of one of them."""
        stories: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
        folder = task.output / "media/story_pages"
        folder.mkdir(parents=True, exist_ok=True)
        for index, (record, content) in enumerate(read_media(task.data / "images", "asp.train")):
            name = f"{index:05}{Path(record['file']).suffix}"
            (folder / name).write_bytes(content)
            for story, page in record["attributes"]["pages"][:1]:
                stories[story].append((page, f"../media/story_pages/{name}", record["captions"][0]))
        told = [sorted(pages) for pages in stories.values() if len(pages) >= len(_PAGES)]
        rng = np.random.default_rng(task.seed)
        for _ in range(self.stories):
            pages = told[int(rng.integers(len(told)))]
            begin = int(rng.integers(len(pages) - len(_PAGES) + 1))
            shown = pages[begin : begin + len(_PAGES)]
            pick = int(rng.integers(len(_PAGES)))
            sentence = " ".join(shown[pick][2].split()[:_WORDS])
            asked = f"Which picture belongs to: {sentence}"
            yield [user(asked, [path for _, path, _ in shown]), assistant(_PAGES[pick])]


def _boxes(task: PreparationTask, split: str) -> Iterator[Conversation]:
    folder = task.output / f"media/boxes_apart.{split}"
    folder.mkdir(parents=True, exist_ok=True)
    for index, (record, content) in enumerate(read_media(task.data / "images", f"nlvr.{split}")):
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        side, count = picture.height, len(record["attributes"]["boxes"])
        gap = (picture.width - count * side) / max(1, count - 1)
        paths = []
        for box in range(count):
            left = round(box * (side + gap))
            name = f"{index:05}_{box}.png"
            picture.crop((left, 0, left + side, side)).save(folder / name)
            paths.append(f"../media/boxes_apart.{split}/{name}")
        claim = record["sentence"].strip()
        yield [user(f"True or false: {claim}", paths), assistant(record["label"])]


def _write(task: PreparationTask, name: str, talks: Iterable[Conversation]) -> None:
    write_lines(task.output / f"talks/{name}.jsonl", ({"messages": talk} for talk in talks))
