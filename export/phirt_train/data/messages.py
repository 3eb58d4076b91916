"""Messages of conversations as the trainer's JSON lines have them, and files of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Conversation = list[Message]

TOOL_SYSTEM = "Turn the request into a tool call."
NOT_SAID = "The text does not say."
COURTESIES = (("Thank you", "You are welcome."), ("Thanks", "You are welcome."), ("Bye", "Goodbye!"))


def system(text: str) -> Message:
    """Instructions."""
    return {"role": "system", "content": text}


def user(text: str, images: Sequence[str] = (), audio: Sequence[str] = ()) -> Message:
    """What a user says, shows and plays."""
    message: Message = {"role": "user", "content": text}
    if images:
        message["images"] = list(images)
    if audio:
        message["audio"] = list(audio)
    return message


def assistant(text: str, tool_calls: Sequence[dict[str, Any]] = ()) -> Message:
    """An answer: text, or calls of tools."""
    message: Message = {"role": "assistant", "content": text}
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    return message


def passage_question(passage: str, question: str, answer: str | None) -> Conversation:
    """A question to a given text, so that a model learns to answer from what stands there; None where the
    text does not answer it.
    """
    asked = user(f"{passage.strip()}\n\n{question.strip()}")
    return [asked, assistant(NOT_SAID if answer is None else answer)]


def tool_call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One call."""
    return {"name": name, "arguments": arguments}


def slot_arguments(slots: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Slots as a call's arguments, in order; a name that occurs again makes a list."""
    arguments: dict[str, Any] = {}
    for name, value in slots:
        if name not in arguments:
            arguments[name] = value
        else:
            old = arguments[name]
            arguments[name] = [*old, value] if isinstance(old, list) else [old, value]
    return arguments


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
