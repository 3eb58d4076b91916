"""Pictures and recordings as files, with JSON lines that say what each shows or says.

Knows the data package's archives, the renderer and the voices. Knows nothing of conversations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phirt_train.data.archives import read_media
from phirt_train.data.messages import write_lines

from .shapes import Scene, draw_scene, draw_word
from .voices import DIGITS, QUESTIONS, is_installed, sentences, spoken

PHOTOS = ("clothing", "caltech101", "grocery", "flags")
WITHOUT_HELD_OUT = ("flags",)
RENDERED = ("shapes", "words")
HELD_OUT_SPEAKER = "fsdd5"  # in no training file: what a digit score on a new speaker is measured with
SPOKEN_QUESTIONS = "spoken_questions"
SIDE = 160  # pixels of a rendered picture
_HELD_OUT_DRAWINGS = 300
_NOTED = 500

Note = Callable[[str, int], None]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file, relative to the output, and its label or what is drawn on it."""

    path: str
    label: str
    scene: Scene | None = None


@dataclasses.dataclass(frozen=True)
class Clip:
    """A file, relative to the output, and its record: `text`, or `intent` and `slots`, and `speaker`."""

    path: str
    record: Mapping[str, Any]


def _store(output: Path, folder: str, index: int, suffix: str, content: bytes) -> str:
    name = f"media/{folder}/{index:05}{suffix}"
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_bytes(content)
    return name


def write_photos(data: Path, output: Path, source: str, split: str, note: Note) -> list[Picture]:
    """The photos of `images/<source>.<split>`, and `images/<source>.<split>.jsonl` to classify them."""
    pictures = []
    for index, (record, content) in enumerate(read_media(data / "images", f"{source}.{split}")):
        suffix = Path(record["file"]).suffix
        path = _store(output, f"{source}.{split}", index, suffix, content)
        pictures.append(Picture(path, record["label"]))
        if index % _NOTED == 0:
            note(f"unpacking {source}.{split}", index)
    lines = ({"image": f"../{p.path}", "labels": {source: p.label}} for p in pictures)
    write_lines(output / f"images/{source}.{split}.jsonl", lines)
    return pictures


def write_drawings(output: Path, kind: str, split: str, count: int, seed: int, note: Note) -> list[Picture]:
    """Rendered pictures of kind "shapes" or "words", and JSON lines to classify what they show."""
    draw = {"shapes": draw_scene, "words": draw_word}[kind]
    pictures = []
    for index in range(count):
        scene = draw(np.random.default_rng((seed, index)), SIDE)
        path = f"media/{kind}.{split}/{index:05}.png"
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        scene.image.save(output / path, compress_level=1)
        pictures.append(Picture(path, "", scene.without_image()))
        if index % _NOTED == 0:
            note(f"drawing {kind}.{split}", index)
    lines = ({"image": f"../{p.path}", "labels": _answers(p.scene)} for p in pictures if p.scene)
    write_lines(output / f"images/{kind}.{split}.jsonl", lines)
    return pictures


def _answers(scene: Scene) -> dict[str, str]:
    """What can be asked of a drawing; of several shapes only their number."""
    if scene.word:
        return {"word": scene.word}
    answers = {"count": str(len(scene.things))}
    if len(scene.things) == 1:
        (thing,) = scene.things
        answers |= {"shape": thing.shape, "colour": thing.colour, "position": thing.position}
    return answers


def write_pictures(
    data: Path, output: Path, drawings: int, seed: int, note: Note
) -> dict[str, tuple[list[Picture], list[Picture]]]:
    """Training and held-out pictures of every source."""
    found: dict[str, tuple[list[Picture], list[Picture]]] = {}
    for source in PHOTOS:
        held_out = [] if source in WITHOUT_HELD_OUT else write_photos(data, output, source, "val", note)
        found[source] = write_photos(data, output, source, "train", note), held_out
    for number, kind in enumerate(RENDERED):
        train = write_drawings(output, kind, "train", drawings, seed + 2 * number, note)
        few = min(drawings, _HELD_OUT_DRAWINGS)
        found[kind] = train, write_drawings(output, kind, "val", few, seed + 2 * number + 1, note)
    return found


def _write_clips(
    output: Path, name: str, found: Iterator[tuple[Mapping[str, Any], str, bytes]], note: Note
) -> list[Clip]:
    clips = []
    for index, (record, suffix, content) in enumerate(found):
        clips.append(Clip(_store(output, name, index, suffix, content), record))
        if index % _NOTED == 0:
            note(f"writing {name}", index)
    return clips


def _recordings(data: Path, name: str) -> Iterator[tuple[Mapping[str, Any], str, bytes]]:
    for record, content in read_media(data / "speech", name):
        yield record, Path(record["file"]).suffix, content


def _made(texts: Sequence[str], seed: int) -> Iterator[tuple[Mapping[str, Any], str, bytes]]:
    for text, wav in spoken(texts, seed):
        yield {"text": text}, ".wav", wav


def write_transcripts(output: Path, name: str, clips: Sequence[Clip]) -> None:
    """`speech/<name>.jsonl`: the recordings that have words."""
    lines = (
        {"audio": f"../{clip.path}", "text": clip.record["text"]}
        for clip in clips
        if clip.record.get("text") is not None
    )
    write_lines(output / f"speech/{name}.jsonl", lines)


def write_recordings(data: Path, output: Path, note: Note) -> tuple[dict[str, list[Clip]], list[Clip]]:
    """Training recordings by source, and those of the speaker who is in none of them."""
    found = {}
    for source in ("fsdd", "speechocean762", "letters", "speech_to_intent"):
        found[source] = _write_clips(output, f"{source}.train", _recordings(data, f"{source}.train"), note)
    new_speaker = [clip for clip in found["fsdd"] if clip.record.get("speaker") == HELD_OUT_SPEAKER]
    found["fsdd"] = [clip for clip in found["fsdd"] if clip.record.get("speaker") != HELD_OUT_SPEAKER]
    for source in ("fsdd", "speechocean762", "letters"):
        write_transcripts(output, f"{source}.train", found[source])
    write_transcripts(output, "fsdd.new_speaker", new_speaker)
    held_out = _write_clips(output, "speechocean762.val", _recordings(data, "speechocean762.val"), note)
    write_transcripts(output, "speechocean762.val", held_out)
    return found, new_speaker


def write_voices(
    data: Path, output: Path, counts: Mapping[str, int], seed: int, note: Note
) -> dict[str, list[Clip]]:
    """Made speech of the named sources; none without espeak-ng, and the recipe leaves such sources out."""
    if not is_installed():
        note("espeak-ng is not installed: no speech is made", 0)
        return {}
    found = {}
    for source, count in counts.items():
        if source == "spoken_sentences":
            said = sentences(data, count, seed)
        else:
            texts = DIGITS if source == "spoken_digits" else QUESTIONS
            said = [texts[i % len(texts)] for i in range(count)]
        found[source] = _write_clips(output, source, _made(said, seed), note)
        write_transcripts(output, source, found[source])
    return found
