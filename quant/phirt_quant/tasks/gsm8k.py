"""GSM8K (arXiv 2110.14168): grade-school word problems of several steps, with worked answers.

Strictly the number behind `####` counts, as the examples write it; loosely the last number of the answer.
"""

import re

from phirt_quant.tasks.task import Exercise, Record, Task

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def plain_number(text: str) -> str:
    """A number without commas, dollar signs and a full stop behind it."""
    return re.sub(r"[,$]", "", text).removesuffix(".").lower()


def _exercise(record: Record) -> Exercise:
    gold = plain_number(record["answer"].rpartition("#### ")[2].strip())

    def is_right(text: str) -> bool:
        found = _STRICT.search(text)
        return found is not None and plain_number(found[1]) == gold

    def is_right_loosely(text: str) -> bool:
        found = _FLEXIBLE.findall(text)
        return bool(found) and plain_number(found[-1]) == gold

    return Exercise(
        f"Question: {record['question']}\nAnswer:",
        f" {record['answer']}",
        is_right,
        stops=("Question:",),
        max_new_tokens=256,
        is_right_loosely=is_right_loosely,
    )


TASK = Task(
    "eval/gsm8k.jsonl",
    lambda record: [_exercise(record)],
    ("exact_match", "flexible_match"),
    shots=5,
    examples="text/gsm8k.train.jsonl",
)
