"""BLiMP (arXiv 1912.00582): of two sentences that differ in one point of grammar, the right one is likelier;
chance is 50 %.
"""

from phirt_quant.tasks.task import Question, Task

TASK = Task(
    "eval/blimp.jsonl",
    lambda record: [Question("", (f" {record['good']}", f" {record['bad']}"))],
    ("acc",),
)
