"""Calibration data as a user has it: text, pictures and recordings in files, or JSON lines that combine them.

Knows files, folders and their limits. Knows nothing of models or tokens: media are named here, and read when
they are encoded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from phirt.errors import ConfigError
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_quant.samples import BOTH_PROMPT, IMAGE_PROMPT, read_text

# What is calibrated on where the user gives nothing.
OWN_TEXT = Path(__file__).parent / "text"

_TEXT = (".txt", ".md")
_RECORDS = (".jsonl",)
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_AUDIO = (".wav", ".flac", ".ogg", ".mp3")
_ACCEPTED = (
    "a folder, text (.txt, .md), images (.jpg, .png, .webp, .gif, .bmp), recordings (.wav, .flac, .ogg, "
    ".mp3), or JSON lines (.jsonl)"
)
_KEYS = ("text", "system", "prompt", "image", "audio", "answer")
_MAX_TEXT_BYTES = 64 << 20
_MAX_LINE_CHARACTERS = 1 << 20
_MAX_SAMPLES = 100_000
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Sample:
    """Either `text` to be read as it is, or a user's turn (`prompt`, `images`, `audio`) under the
    instructions `system`, with the `answer` that followed it; each may be empty.
    """

    text: str = ""
    system: str = ""
    prompt: str = ""
    images: tuple[Path, ...] = ()
    audio: tuple[Path, ...] = ()
    answer: str = ""


def read_samples(paths: Sequence[Path]) -> list[Sample]:
    """The samples of files and folders, in the order given; a folder's files by name, subfolders included.

    A text file is one sample. A picture or a recording is the turn that asks what it shows or says, unless a
    line of JSON lines has it in a turn. Such a line is an object: `text`, or a turn of `system`, `prompt`,
    `image`, `audio` (a path beside the file, or a list of them) and `answer`.

    Raises:
        ConfigError: a file is missing, too large, of another kind, or a line is no such object. A folder's
            files of other kinds are passed over.
    """
    found: list[tuple[Path, Sample]] = []
    for path in paths:
        for file in _files(path):
            for sample in _samples_of(file):
                found.append((file, sample))
                if len(found) > _MAX_SAMPLES:
                    raise ConfigError(
                        f"the calibration data has more than {_MAX_SAMPLES} samples; give fewer"
                    )
    if not found:
        named = ", ".join(str(path) for path in paths)
        raise ConfigError(f"{named} holds nothing to calibrate with; accepted: {_ACCEPTED}")
    in_turns = {
        path
        for file, sample in found
        if file.suffix.lower() in _RECORDS
        for path in (*sample.images, *sample.audio)
    }
    return [sample for file, sample in found if file not in in_turns]


def fingerprint(samples: Iterable[Sample]) -> str:
    """Hex sha256 over the samples and the content of the media that they name, and over what computes on
    them: torch's version and its threads, by which sums may round otherwise.

    Raises:
        ConfigError: a media file cannot be read.
    """
    total = hashlib.sha256(json.dumps([torch.__version__, torch.get_num_threads()]).encode())
    for sample in samples:
        media = [[_file_digest(path) for path in paths] for paths in (sample.images, sample.audio)]
        described = json.dumps([sample.text, sample.system, sample.prompt, sample.answer, *media])
        total.update(described.encode() + b"\n")
    return total.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        if path.suffix.lower() not in (*_TEXT, *_RECORDS, *_IMAGES, *_AUDIO):
            raise ConfigError(f"{path} is no calibration data; accepted: {_ACCEPTED}")
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if suffix in (*_TEXT, *_RECORDS, *_IMAGES, *_AUDIO) and not name.startswith("."):
                yield Path(folder) / name


def _samples_of(path: Path) -> Iterator[Sample]:
    suffix = path.suffix.lower()
    if suffix in _IMAGES:
        yield Sample(prompt=IMAGE_PROMPT, images=(_existing(path, str(path)),))
    elif suffix in _AUDIO:
        yield Sample(prompt=TRANSCRIBE_PROMPT, audio=(_existing(path, str(path)),))
    elif suffix in _TEXT:
        if text := read_text(path, _MAX_TEXT_BYTES):
            yield Sample(text=text)
    else:
        for number, line in enumerate(read_text(path, _MAX_TEXT_BYTES).splitlines(), 1):
            if line.strip():
                yield _record(line, path, f"{path} line {number}")


def _record(line: str, path: Path, where: str) -> Sample:
    try:
        record = json.loads(line) if len(line) <= _MAX_LINE_CHARACTERS else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ConfigError(f"{where} is no JSON object of at most {_MAX_LINE_CHARACTERS} characters")
    if unknown := sorted(set(record) - set(_KEYS)):
        raise ConfigError(f"{where}: {unknown[0][:40]!r} is not known; accepted: {', '.join(_KEYS)}")
    text, system, prompt, answer = (
        _string(record.get(key, ""), key, where) for key in ("text", "system", "prompt", "answer")
    )
    images, audio = (_media(record.get(key, []), key, path, where) for key in ("image", "audio"))
    if bool(text) == bool(prompt or images or audio):
        raise ConfigError(f"{where} must have either 'text', or a turn of 'prompt', 'image' and 'audio'")
    if not prompt and (images or audio):
        prompt = BOTH_PROMPT if images and audio else IMAGE_PROMPT if images else TRANSCRIBE_PROMPT
    return Sample(text, system, prompt, images, audio, answer)


def _string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key!r} must be a string")
    return value


def _media(value: Any, key: str, path: Path, where: str) -> tuple[Path, ...]:
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{where}: {key!r} must be a path, or a list of them")
    return tuple(_existing(path.parent / name, f"{where}: {name}") for name in names)


def _existing(path: Path, shown: str) -> Path:
    try:
        found = path.is_file()
    except (OSError, ValueError):  # ValueError: a path with a NUL
        found = False
    if not found:
        raise ConfigError(f"{shown[:300]} does not exist, or is no file; check the calibration data")
    return path


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
