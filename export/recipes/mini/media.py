"""Pictures and recordings of the data package as files, and what each shows or says.

Knows the package's archives and the voices. Knows nothing of conversations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phirt_train.data.archives import read_media
from phirt_train.data.messages import write_lines

PHOTOS = ("caltech101", "clothing", "grocery", "flags")
PICTURES = (*PHOTOS, "nlvr")
SPEECH = ("fsdd", "letters", "speechocean762", "speech_to_intent")
WITHOUT_HELD_OUT = ("flags", "letters")
HELD_OUT_SPEAKER = "fsdd5"  # in no training file: what a digit score on a new speaker is measured with
_NOTED = 500

Note = Callable[[str, int], None]
Found = Iterator[tuple[Mapping[str, Any], str, bytes]]


@dataclasses.dataclass(frozen=True)
class Item:
    """A file, relative to the output, and its record."""

    path: str
    record: Mapping[str, Any]


def write_items(output: Path, name: str, found: Found, note: Note) -> list[Item]:
    """Write media as `media/<name>/<number><suffix>`."""
    items = []
    folder = output / "media" / name
    folder.mkdir(parents=True, exist_ok=True)
    for index, (record, suffix, content) in enumerate(found):
        path = f"media/{name}/{index:05}{suffix}"
        (output / path).write_bytes(content)
        items.append(Item(path, record))
        if index % _NOTED == 0:
            note(f"writing {name}", index)
    return items


def packaged(data: Path, kind: str, name: str) -> Found:
    """The media of an archive of the data package."""
    for record, content in read_media(data / kind, name):
        yield record, Path(record["file"]).suffix, content


def write_labels(output: Path, source: str, split: str, items: Sequence[Item]) -> None:
    """`images/<source>.<split>.jsonl`: the pictures to classify."""
    lines = ({"image": f"../{item.path}", "labels": {source: item.record["label"]}} for item in items)
    write_lines(output / f"images/{source}.{split}.jsonl", lines)


def write_transcripts(output: Path, name: str, items: Sequence[Item]) -> None:
    """`speech/<name>.jsonl`: the recordings that have words."""
    lines = (
        {"audio": f"../{item.path}", "text": item.record["text"]}
        for item in items
        if item.record.get("text") is not None
    )
    write_lines(output / f"speech/{name}.jsonl", lines)
