"""Questions about pictures and recordings, with their answers.

Knows labels, scenes and transcripts. Knows nothing of pixels, frames or tokens. A question is a pure function
of a record and a random generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_train.data.messages import TOOL_SYSTEM, slot_arguments, tool_call

from .shapes import Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


# The prompts that measurements use; training also asks in other words.
STANDARD_PROMPTS = {
    "clothing": "What piece of clothing is this?",
    "caltech101": "What is in the picture?",
    "grocery": "Which product is this?",
    "flags": "Which country's flag is this?",
    "speech": TRANSCRIBE_PROMPT,
}
OTHER_PROMPTS = {
    "clothing": (
        "What is this?",
        "What is in this picture?",
        "What kind of garment is it?",
        "Name the garment.",
    ),
    "caltech101": ("What is this?", "What is in this picture?", "What do you see?", "Describe the picture."),
    "grocery": (
        "What is this?",
        "What is in this picture?",
        "What fruit, vegetable or carton is this?",
        "Name the product.",
    ),
    "flags": ("What flag is this?", "Whose flag is it?"),
    "speech": (
        "Transcribe the audio.",
        "What is said?",
        "And what is said here?",
        "Write down what you hear.",
        "What do you hear?",
    ),
}


DESCRIBE = (
    "What is in this picture?",
    "What is in the picture?",
    "What is this?",
    "Describe the picture.",
    "What do you see?",
)
DESCRIBED = 4  # scenes of more shapes are counted, not listed


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and the answer to learn: text, or a tool call. `system` may be empty."""

    prompt: str
    answer: str
    system: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()


def name_picture(source: str, label: str, rng: np.random.Generator) -> Question:
    """Name what a photo of `source` shows."""
    others = OTHER_PROMPTS[source]
    prompt = STANDARD_PROMPTS[source] if rng.random() < 0.6 else others[rng.integers(len(others))]
    return Question(prompt, label)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def describe(things: Sequence[Thing]) -> str:
    """All shapes in reading order: "a red circle, a blue square and a green triangle"."""
    names = [with_article(f"{thing.colour} {thing.shape}") for thing in things]
    return " and ".join(([", ".join(names[:-1])] if len(names) > 1 else []) + names[-1:])


def about_scene(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about a rendered picture: read, count, describe, name a shape or colour, find a place."""
    if scene.word:
        asked = ("What does it say?", "What is this?", "Read the word.", "What is written here?")
        return Question(asked[rng.integers(4)], scene.word)
    things = scene.things
    pick = things[rng.integers(len(things))]
    kind = rng.random()
    if kind < 0.3:
        same = [thing for thing in things if thing.colour == pick.colour]
        if rng.random() < 0.6:
            return Question("How many shapes are there?", NUMBERS[len(things)])
        return Question(f"How many {pick.colour} shapes are there?", NUMBERS[len(same)])
    if len(things) <= DESCRIBED and kind < 0.55:
        return Question(DESCRIBE[rng.integers(len(DESCRIBE))], describe(things))
    if len(things) == 1 and kind < 0.63:
        return Question("What shape is this?", pick.shape)
    alike = [thing for thing in things if thing.shape == pick.shape]
    if len(alike) == 1 and kind < 0.75:
        return Question(f"What colour is the {pick.shape}?", pick.colour)
    same = [thing for thing in things if (thing.shape, thing.colour) == (pick.shape, pick.colour)]
    if len(same) == 1 and kind < 0.95:
        return Question(f"Where is the {pick.colour} {pick.shape}?", pick.position)
    there = rng.random() < 0.5
    colour = pick.colour if there else str(rng.choice(["red", "green", "blue", "yellow", "purple", "orange"]))
    found = any((thing.shape, thing.colour) == (pick.shape, colour) for thing in things)
    return Question(f"Is there {with_article(f'{colour} {pick.shape}')}?", "yes" if found else "no")


def spoken_answers(source: str, label: str, scene: Scene | None) -> dict[str, str]:
    """The spoken questions that make sense for a picture, with their answers; `scene` for rendered ones."""
    if scene is None:
        return {"What is this?": label, STANDARD_PROMPTS[source]: label}
    if scene.word:
        return {"What is this?": scene.word, "What does it say?": scene.word}
    answers = {"How many shapes are there?": NUMBERS[len(scene.things)]}
    if len(scene.things) <= DESCRIBED:
        answers |= dict.fromkeys(("What is this?", "What is in the picture?"), describe(scene.things))
    if len(scene.things) == 1:
        answers["What shape is this?"] = scene.things[0].shape
    return answers


def about_recording(record: Mapping[str, Any], rng: np.random.Generator) -> Question:
    """Transcribe a recording, or turn a spoken order into a tool call."""
    if record.get("text") is None:
        call = tool_call(record["intent"], slot_arguments(record["slots"].items()))
        return Question("", "", TOOL_SYSTEM, (call,))
    others = OTHER_PROMPTS["speech"]
    prompt = TRANSCRIBE_PROMPT if rng.random() < 0.7 else others[rng.integers(len(others))]
    return Question(prompt, record["text"])
