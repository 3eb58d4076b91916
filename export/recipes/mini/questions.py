"""What is asked about a picture or a recording, and the answers: short ones, names and words alone.

Knows labels and transcripts. Knows nothing of files, pixels or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from phirt.transcription import TRANSCRIBE_PROMPT

ANY_PICTURE = (
    "What is this?",
    "What is in the picture?",
    "What is in this picture?",
    "What do you see?",
    "What does the picture show?",
    "Name what you see.",
)
OF_SOURCE = {
    "caltech101": ("What object is this?", "What is shown here?"),
    "clothing": ("What piece of clothing is this?", "Name the garment.", "What kind of garment is it?"),
    "grocery": ("Which product is this?", "Name the product.", "What fruit, vegetable or carton is this?"),
    "flags": ("Which country's flag is this?", "Whose flag is it?", "What flag is this?"),
    "imagenet": ("What object is this?", "What is shown here?"),
}
TRANSCRIBE = (
    TRANSCRIBE_PROMPT,
    "Transcribe the audio.",
    "What is said?",
    "Write down what you hear.",
    "What do you hear?",
)
ORDER = "Turn the order into JSON."
REQUEST = "Turn the request into JSON."
_STANDARD = 0.5  # how often the standard prompt for speech is asked


def about_picture(source: str, rng: np.random.Generator) -> str:
    """A question whose answer is the name of what the picture shows."""
    asked = (*ANY_PICTURE, *OF_SOURCE[source], *OF_SOURCE[source])
    return asked[rng.integers(len(asked))]


def about_claim(sentence: str) -> str:
    """Whether a sentence holds for a picture."""
    return f"True or false: {sentence.strip()}"


def about_speech(rng: np.random.Generator) -> str:
    """A question whose answer is what is said."""
    if rng.random() < _STANDARD:
        return TRANSCRIBE_PROMPT
    return TRANSCRIBE[rng.integers(len(TRANSCRIBE))]


def order_json(record: Mapping[str, Any]) -> str:
    """An order's intent and slots."""
    return json.dumps({"intent": record["intent"], **record["slots"]}, ensure_ascii=False)


def request_json(record: Mapping[str, Any]) -> str:
    """A request's intent and slots, whose values are in the words of the request."""
    slots: dict[str, Any] = {}
    for name, value in record["slots"]:
        slots[name] = f"{slots[name]}, {value}" if name in slots else value
    return json.dumps({"intent": record["intent"], **slots}, ensure_ascii=False)
