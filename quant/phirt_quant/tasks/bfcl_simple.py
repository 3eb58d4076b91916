"""Berkeley Function-Calling Leaderboard, its simple part: the one call that a request asks for, as JSON.

A call is right as the leaderboard's checker has it: the name, every argument among the accepted values, no
argument that the function lacks, and none left out but those that may be ("" among their values).
"""

import json
from typing import Any

from phirt_quant.tasks.task import Exercise, Record, Task


def _target(accepted: dict[str, dict[str, list[Any]]]) -> str:
    """The call with the first accepted value of each argument that must be given."""
    ((name, arguments),) = accepted.items()
    return json.dumps({"name": name, "arguments": _first_accepted(arguments)}, ensure_ascii=False)


def _first_accepted(value: Any) -> Any:
    if isinstance(value, list):
        return [_first_accepted(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _first_accepted(values[0]) for key, values in value.items() if "" not in values}


def _is_right(text: str, accepted: dict[str, dict[str, list[Any]]]) -> bool:
    ((name, arguments),) = accepted.items()
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(call, dict) or call.get("name") != name or not isinstance(call.get("arguments"), dict):
        return False
    given = call["arguments"]
    return set(given) <= set(arguments) and all(
        any(_equal(given[key], value) for value in values) if key in given else "" in values
        for key, values in arguments.items()
    )


def _equal(given: Any, accepted: Any) -> bool:
    """Whether a value is an accepted one: text without case and punctuation, numbers by value, the values
    inside of an accepted object each from a list of its own.
    """
    if isinstance(accepted, str) and isinstance(given, str):
        return _plain(given) == _plain(accepted)
    if isinstance(accepted, bool) or isinstance(given, bool):
        return given is accepted
    if isinstance(accepted, list) and isinstance(given, list):
        return len(given) == len(accepted) and all(map(_equal, given, accepted))
    if isinstance(accepted, dict) and isinstance(given, dict):
        return set(given) <= set(accepted) and all(
            any(_equal(given[key], value) for value in values) if key in given else "" in values
            for key, values in accepted.items()
        )
    return bool(given == accepted)


def _plain(text: str) -> str:
    """As the leaderboard compares text: lower case, without spaces and `,./-_*^`; quotes are alike."""
    return "".join(c for c in text.lower().replace("'", '"') if c not in " ,./-_*^")


def _exercise(record: Record) -> Exercise:
    (accepted,) = record["answer"]
    ((message,),) = record["question"]
    functions = json.dumps(record["function"], ensure_ascii=False)
    return Exercise(
        f"Functions: {functions}\nRequest: {message['content'].strip()}\nCall:",
        f" {_target(accepted)}",
        lambda text: _is_right(text, accepted),
        max_new_tokens=160,
    )


TASK = Task("eval/bfcl_simple.jsonl", lambda record: [_exercise(record)], ("exact_match",), shots=2)
