"""SVAMP (arXiv 2103.07191): word problems of one step; the last number of the answer's line counts."""

import re

from phirt_quant.tasks.task import Exercise, Record, Task

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def last_number(text: str) -> float | None:
    """The last number in a text, commas between thousands left out; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _exercise(record: Record) -> Exercise:
    answer = last_number(record["answer"])
    return Exercise(
        f"Question: {record['context']}\nAnswer:",
        f" {record['answer']}",
        lambda text: last_number(text) == answer,
        stops=("\n", "Question:"),
        max_new_tokens=32,
    )


TASK = Task("eval/svamp.jsonl", lambda record: [_exercise(record)], ("exact_match",), shots=5)
