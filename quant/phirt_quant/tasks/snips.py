"""SNIPS (arXiv 1805.10190): a request's intent and all of its slots, as JSON."""

import json
from typing import Any

from phirt_quant.tasks.task import Exercise, Record, Task


def _wanted(record: Record) -> dict[str, Any]:
    slots: dict[str, list[str]] = {}
    for name, value in record["slots"]:
        slots.setdefault(name, []).append(value)
    plain = {name: values[0] if len(values) == 1 else values for name, values in slots.items()}
    return {"intent": record["intent"], "slots": plain}


def _folded(value: Any) -> Any:
    """The value without differences of case and of spaces at the ends."""
    if isinstance(value, dict):
        return {key: _folded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_folded(item) for item in value]
    return value.strip().casefold() if isinstance(value, str) else value


def _is(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return bool(_folded(json.loads(text)) == _folded(wanted))
    except (ValueError, RecursionError):
        return False


def _exercise(record: Record) -> Exercise:
    wanted = _wanted(record)
    return Exercise(
        f"Request: {record['text']}\nJSON:",
        f" {json.dumps(wanted, ensure_ascii=False)}",
        lambda text: _is(text, wanted),
        max_new_tokens=128,
    )


TASK = Task(
    "eval/snips.validate.jsonl",
    lambda record: [_exercise(record)],
    ("exact_match",),
    shots=8,
    examples="text/snips.train.jsonl",
)
