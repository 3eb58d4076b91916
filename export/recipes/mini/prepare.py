"""Writes mini's training data: the data package and made speech as JSON lines and media.

images/      pictures with labels        {"image": …, "labels": {…}}
speech/      recordings with words       {"audio": …, "text": …}
talks/       conversations with media    {"messages": […]}
media/       the pictures and recordings themselves
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from phirt.errors import ConfigError
from phirt.fields import Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.preparation import PreparationTask

from .imagined import write_imagined
from .media import (
    HELD_OUT_SPEAKER,
    PHOTOS,
    PICTURES,
    SPEECH,
    WITHOUT_HELD_OUT,
    Found,
    Item,
    packaged,
    write_items,
    write_labels,
    write_transcripts,
)
from .questions import (
    ANY_PICTURE,
    ORDER,
    REQUEST,
    about_claim,
    about_picture,
    about_speech,
    order_json,
    request_json,
)
from .voices import DIGITS, is_installed, sentences, spoken

_Count = Annotated[int, Range(0, 1_000_000)]


@dataclasses.dataclass(frozen=True)
class Options:
    """How much is made.

    Attributes:
        spoken_sentences, spoken_digits, spoken_requests, spoken_questions: made recordings.
        questions: questions about each picture, and about each recording.
        talks: spoken questions about pictures.
        imagined: pictures of each of ImageNet's classes, as the trunk would see them.
        base: the checkpoint that the recipe starts from, beside this file.
    """

    spoken_sentences: _Count
    spoken_digits: _Count
    spoken_requests: _Count
    spoken_questions: _Count
    questions: _Count
    talks: _Count
    imagined: _Count
    base: str = "base"


def prepare(task: PreparationTask, options: Options) -> None:
    """Write everything under `task.output`."""
    data, output = task.data, task.output
    if not (data / "README.md").is_file():
        raise ConfigError(
            f"{data} is not the data folder; it must hold README.md, text/, images/ and speech/"
        )
    pictures = {source: _pictures(task, source, "train") for source in PICTURES}
    clips = {source: _clips(task, source, "train") for source in SPEECH}
    new_speaker = [item for item in clips["fsdd"] if item.record["speaker"] == HELD_OUT_SPEAKER]
    clips["fsdd"] = [item for item in clips["fsdd"] if item.record["speaker"] != HELD_OUT_SPEAKER]
    for name, items in (("fsdd.train", clips["fsdd"]), ("fsdd.new_speaker", new_speaker)):
        write_transcripts(output, name, items)
    clips |= _voices(task, options)
    base = Path(__file__).parent / options.base
    photos = [pictures[source] for source in ("caltech101", "clothing", "grocery")]
    imagined = write_imagined(base, output, photos, options.imagined, task.seed, task.note)
    write_labels(output, "imagenet", "train", imagined)
    for source, items in {**pictures, "imagenet": imagined}.items():
        _write_talks(task, f"{source}.train", _about_pictures(source, items, options.questions, task.seed))
    for source, items in clips.items():
        _write_talks(task, f"{source}.train", _about_clips(items, options.questions, task.seed))
    _write_talks(
        task, "spoken_questions", _asked_aloud(pictures, clips["spoken_questions"], options, task.seed)
    )
    for source in (*PICTURES, *SPEECH):
        if source not in WITHOUT_HELD_OUT:
            find, about = (_pictures, _about_pictures) if source in PICTURES else (_clips, None)
            items = find(task, source, "val")
            talks = about(source, items, 1, 7) if about else _about_clips(items, 1, 7)
            _write_talks(task, f"{source}.val", talks)
    _write_talks(task, "fsdd.new_speaker", _about_clips(new_speaker, 1, 7))


def _pictures(task: PreparationTask, source: str, split: str) -> list[Item]:
    name = f"{source}.{split}"
    items = write_items(task.output, name, packaged(task.data, "images", name), task.note)
    if source in PHOTOS:
        write_labels(task.output, source, split, items)
    return items


def _clips(task: PreparationTask, source: str, split: str) -> list[Item]:
    name = f"{source}.{split}"
    items = write_items(task.output, name, packaged(task.data, "speech", name), task.note)
    write_transcripts(task.output, name, items)
    return items


def _voices(task: PreparationTask, options: Options) -> dict[str, list[Item]]:
    """Made speech by source; none where the voices are not installed."""
    wanted: dict[str, list[dict[str, object]]] = {
        "spoken_sentences": [
            {"text": text} for text in sentences(task.data, options.spoken_sentences, task.seed)
        ],
        "spoken_digits": [{"text": DIGITS[n % 10]} for n in range(options.spoken_digits)],
        "spoken_requests": _requests(task, options.spoken_requests),
        "spoken_questions": [
            {"text": ANY_PICTURE[n % len(ANY_PICTURE)]} for n in range(options.spoken_questions)
        ],
    }
    if not is_installed():
        task.note("espeak-ng or flite is not installed: no speech is made")
        return {name: [] for name in wanted}
    found = {}
    for number, (name, records) in enumerate(wanted.items()):
        found[name] = write_items(task.output, name, _said(records, task.seed + number), task.note)
        if name != "spoken_questions":
            write_transcripts(task.output, name, found[name])
    return found


def _said(records: Sequence[dict[str, object]], seed: int) -> Found:
    texts = [str(record["text"]) for record in records]
    for record, (_, content) in zip(records, spoken(texts, seed), strict=True):
        yield record, ".flac", content


def _requests(task: PreparationTask, count: int) -> list[dict[str, object]]:
    records = [r for r in read_records(task.data / "text/snips.train.jsonl.xz") if r["text"].isascii()]
    rng = np.random.default_rng(task.seed)
    return [records[n] for n in rng.permutation(len(records))[:count]]


def _about_pictures(source: str, items: Sequence[Item], questions: int, seed: int) -> Iterator[Conversation]:
    rng = np.random.default_rng(seed)
    for item in items:
        if source == "nlvr":
            asked = [about_claim(item.record["sentence"])]
        else:
            asked = [about_picture(source, rng) for _ in range(questions)]
        for question in asked:
            yield [user(question, [f"../{item.path}"]), assistant(item.record["label"])]


def _about_clips(items: Sequence[Item], questions: int, seed: int) -> Iterator[Conversation]:
    rng = np.random.default_rng(seed)
    for item in items:
        record, heard = item.record, [f"../{item.path}"]
        if "intent" in record and "text" in record and record["text"] is not None:
            yield [user(REQUEST, [], heard), assistant(request_json(record))]
        elif "intent" in record:
            yield [user(ORDER, [], heard), assistant(order_json(record))]
        else:
            for _ in range(questions):
                yield [user(about_speech(rng), [], heard), assistant(record["text"])]


def _asked_aloud(
    pictures: dict[str, list[Item]], clips: Sequence[Item], options: Options, seed: int
) -> Iterator[Conversation]:
    rng = np.random.default_rng(seed)
    for _ in range(options.talks if clips else 0):
        source = PHOTOS[rng.integers(3)]
        item = pictures[source][rng.integers(len(pictures[source]))]
        clip = clips[int(rng.integers(len(clips)))]
        yield [user("", [f"../{item.path}"], [f"../{clip.path}"]), assistant(item.record["label"])]


def _write_talks(task: PreparationTask, name: str, talks: Iterator[Conversation]) -> None:
    write_lines(task.output / f"talks/{name}.jsonl", ({"messages": talk} for talk in talks))
