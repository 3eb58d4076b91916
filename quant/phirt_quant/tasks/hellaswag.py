"""HellaSwag (arXiv 1905.07830): which of four ends goes on with what is going on; chance is 25 %."""

import re

from phirt_quant.tasks.task import Question, Record, Task


def _plain(text: str) -> str:
    """Without what the articles of WikiHow leave behind."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _question(record: Record) -> Question:
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    ends = tuple(f" {_plain(end)}" for end in record["endings"])
    return Question(_plain(context).rstrip(), ends, int(record["label"]))


TASK = Task(
    "eval/hellaswag.jsonl",
    lambda record: [_question(record)],
    ("acc", "acc_norm"),
    examples="text/hellaswag.train.jsonl",
)
