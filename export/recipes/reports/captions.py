"""Pictures with captions and questions: photos, story pages and drawings.

captions/<source>.<split>.jsonl    pictures with a text each           {"image": …, "text": …}
talks/captions.<source>.jsonl      a caption as the answer to a request
talks/<source>.<split>.jsonl       questions about each picture, with short answers
images/<source>.<split>.jsonl      pictures with labels, as nano has them

Knows the data package's pictures, nano's and what is drawn here. Knows nothing of pixels or tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from phirt.fields import Range
from phirt_train.data.archives import read_media, read_records
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.preparation import PreparationTask

from ..nano.media import RENDERED, Picture, write_pictures
from ..nano.questions import DESCRIBED, describe, with_article
from ..nano.talks import Talks, Turn, ask, conversation
from .figures import FIGURES, Figure

REQUESTS = (
    "Describe the picture.",
    "What does the picture show?",
    "Write a caption.",
    "Describe this picture in one sentence.",
)
_HELD_OUT = 200  # figures
_SPLITS = {"train": 0, "val": 1}


@dataclasses.dataclass(frozen=True)
class Captions:
    """Pictures of every kind.

    Attributes:
        drawings: rendered pictures of shapes, and of words.
        figures: charts, shapes with boxes, and lines of words, of each.
        side: of a figure, in pixels.
        questions: about each picture.
        talks: conversations about two pictures, and with a second question.
    """

    drawings: Annotated[int, Range(1, 1_000_000)] = 4000
    figures: Annotated[int, Range(1, 1_000_000)] = 2000
    side: Annotated[int, Range(32, 4096)] = 160
    questions: Annotated[int, Range(1, 100)] = 2
    talks: Annotated[int, Range(1, 1_000_000)] = 2000

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        pictures = write_pictures(task.data, task.output, self.drawings, task.seed, task.note)
        talks = Talks({name: train for name, (train, _) in pictures.items()}, {}, task.seed)
        about = _descriptions(task.data)
        for source, (train, held_out) in pictures.items():
            task.note(f"captioning {source}")
            for split, found in (("train", train), ("val", held_out)):
                if not found:  # all flags are trained on
                    continue
                said = ((p.path, _caption(source, p, about, task.seed, n)) for n, p in enumerate(found))
                _write_captions(task, f"{source}.{split}", said)
            _write_talks(task, f"{source}.train", talks.about_each(source, self.questions))
            if held_out:
                _write_talks(task, f"{source}.val", _asked_once(source, held_out))
        for kind in ("two_pictures", "then_picture", "then_thanks"):
            _write_talks(task, kind, talks.several(kind, self.talks))
        for split in _SPLITS:
            _write_captions(task, f"stories.{split}", _story_pages(task, split))
            for kind in FIGURES:
                task.note(f"drawing {kind}.{split}")
                self._figures(task, kind, split)

    def _figures(self, task: PreparationTask, kind: str, split: str) -> None:
        count = self.figures if split == "train" else min(self.figures, _HELD_OUT)
        captions, asked = [], []
        for index in range(count):
            seed = (task.seed, list(FIGURES).index(kind), _SPLITS[split], index)
            rng = np.random.default_rng(seed)
            figure = FIGURES[kind](rng, self.side)
            path = _save(task.output, f"media/{kind}.{split}/{index:05}.png", figure)
            captions.append((path, figure.caption))
            times = min(len(figure.questions), self.questions) if split == "train" else 1
            for place in rng.permutation(len(figure.questions))[:times]:
                question, answer = figure.questions[int(place)]
                asked.append([user(question, [f"../{path}"]), assistant(answer)])
        _write_captions(task, f"{kind}.{split}", captions)
        _write_talks(task, f"{kind}.{split}", asked)


def _save(output: Path, path: str, figure: Figure) -> str:
    (output / path).parent.mkdir(parents=True, exist_ok=True)
    figure.image.save(output / path, compress_level=1)
    return path


def _write_captions(task: PreparationTask, name: str, said: Iterable[tuple[str, str]]) -> None:
    """The pictures and their texts, and the same as requests and answers."""
    pairs = list(said)
    lines: Iterator[dict[str, Any]] = ({"image": f"../{path}", "text": text} for path, text in pairs)
    write_lines(task.output / f"captions/{name}.jsonl", lines)
    asked = (
        [user(REQUESTS[number % len(REQUESTS)], [f"../{path}"]), assistant(text)]
        for number, (path, text) in enumerate(pairs)
    )
    _write_talks(task, f"captions.{name}", asked)


def _write_talks(task: PreparationTask, name: str, talks: Iterable[Conversation]) -> None:
    write_lines(task.output / f"talks/{name}.jsonl", ({"messages": talk} for talk in talks))


def _asked_once(source: str, pictures: Sequence[Picture]) -> Iterator[Conversation]:
    for index, picture in enumerate(pictures):
        question = ask(source, picture, np.random.default_rng((7, index)))
        yield conversation([Turn(question, (picture,))])


def _descriptions(data: Path) -> Mapping[str, str]:
    """What is known of the grocery classes, one sentence each."""
    return {
        record["label"]: record["description"].split(". ")[0].rstrip(".") + "."
        for record in read_records(data / "images/grocery.classes.jsonl")
        if record.get("description")
    }


def _caption(source: str, picture: Picture, about: Mapping[str, str], seed: int, number: int) -> str:
    """A sentence that names all that is known of a picture."""
    rng = np.random.default_rng((seed, number))
    if source in RENDERED:
        assert picture.scene is not None
        if picture.scene.word:
            return f"the word {picture.scene.word}"
        things = picture.scene.things
        if len(things) > DESCRIBED:
            return f"{len(things)} shapes, among them {describe(things[:2])}"
        if len(things) == 1:
            return f"{describe(things)} at the {things[0].position}"
        return describe(things)
    if source == "flags":
        return f"the flag of {picture.label}"
    if rng.random() < 0.3 and picture.label in about:
        return about[picture.label]
    forms = ("a photo of {}", "{}", "a picture of {}")
    return forms[int(rng.integers(len(forms)))].format(with_article(picture.label))


def _story_pages(task: PreparationTask, split: str) -> Iterator[tuple[str, str]]:
    """The storybook's pictures with the texts of their pages."""
    for index, (record, content) in enumerate(read_media(task.data / "images", f"asp.{split}")):
        path = f"media/asp.{split}/{index:05}{Path(record['file']).suffix}"
        (task.output / path).parent.mkdir(parents=True, exist_ok=True)
        (task.output / path).write_bytes(content)
        for caption in record["captions"]:
            yield path, caption
