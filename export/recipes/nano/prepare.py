"""Writes nano's training data: the data package, drawings and made speech as JSON lines and media.

text/        texts                       {"text": …}
chats/       conversations without media {"messages": […]}
images/      pictures with labels        {"image": …, "labels": {…}}
speech/      recordings with words       {"audio": …, "text": …}
talks/       conversations with media    {"messages": […]}
media/       the pictures and recordings themselves
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated

import numpy as np

from phirt.errors import ConfigError
from phirt.fields import Range
from phirt_train.data.messages import Conversation, write_lines
from phirt_train.preparation import PreparationTask

from .media import HELD_OUT_SPEAKER, Clip, write_pictures, write_recordings, write_voices
from .questions import about_recording
from .talks import Talks, Turn, ask, conversation
from .text import CONVERSATIONS, DOCUMENTS

_Count = Annotated[int, Range(1, 1_000_000)]


@dataclasses.dataclass(frozen=True)
class Options:
    """How much is made.

    Attributes:
        drawings: rendered pictures of shapes, and of words.
        spoken_digits, spoken_sentences, spoken_questions: made recordings.
        questions: questions about each picture, and requests about each recording.
        talks: conversations of each kind with several media.
    """

    drawings: _Count
    spoken_digits: _Count
    spoken_sentences: _Count
    spoken_questions: _Count
    questions: _Count
    talks: _Count


def prepare(task: PreparationTask, options: Options) -> None:
    """Write everything under `task.output`."""
    data, output, seed = task.data, task.output, task.seed
    if not (data / "README.md").is_file():
        raise ConfigError(
            f"{data} is not the data folder; it must hold README.md, text/, images/ and speech/"
        )
    _write_text(task)
    pictures = write_pictures(data, output, options.drawings, seed, task.note)
    clips, new_speaker = write_recordings(data, output, task.note)
    counts = {
        name: getattr(options, name) for name in ("spoken_digits", "spoken_sentences", "spoken_questions")
    }
    clips |= write_voices(data, output, counts, seed, task.note)
    talks = Talks({name: train for name, (train, _) in pictures.items()}, clips, seed)
    for source in pictures:
        task.note(f"asking about {source}")
        _write_talks(task, f"{source}.train", talks.about_each(source, options.questions))
    for source in clips:
        _write_talks(task, f"{source}.train", talks.of_each_clip(source, options.questions))
    for kind in talks.kinds():
        task.note(f"composing {kind}")
        _write_talks(task, kind, talks.several(kind, options.talks))
    for source, (_, held_out) in pictures.items():
        if not held_out:
            continue
        rngs = (np.random.default_rng((7, index)) for index in range(len(held_out)))
        asked = ((picture, ask(source, picture, rng)) for picture, rng in zip(held_out, rngs, strict=False))
        _write_talks(
            task, f"{source}.val", (conversation([Turn(question, (picture,))]) for picture, question in asked)
        )
    _write_talks(task, "fsdd.new_speaker", map(_transcription, new_speaker))


def _transcription(clip: Clip) -> Conversation:
    assert clip.record["speaker"] == HELD_OUT_SPEAKER
    return conversation([Turn(about_recording(clip.record, np.random.default_rng(0)), (), (clip,))])


def _write_text(task: PreparationTask) -> None:
    for name, (file, read) in DOCUMENTS.items():
        task.note(f"unpacking {name}")
        write_lines(task.output / f"text/{name}.jsonl", ({"text": text} for text in read(task.data / file)))
    for name, make in CONVERSATIONS.items():
        task.note(f"writing {name}")
        chats = make(task.data, task.seed)
        write_lines(task.output / f"chats/{name}.jsonl", ({"messages": chat} for chat in chats))


def _write_talks(task: PreparationTask, name: str, talks: Iterable[Conversation]) -> None:
    write_lines(task.output / f"talks/{name}.jsonl", ({"messages": talk} for talk in talks))
