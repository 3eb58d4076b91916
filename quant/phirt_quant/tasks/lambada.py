"""LAMBADA (arXiv 1606.06031): the last word of a passage, which only the whole passage gives away."""

from phirt_quant.tasks.task import Question, Task

TASK = Task(
    "eval/lambada.jsonl",
    lambda record: [Question(record["context"], (f" {record['continuation']}",))],
    ("greedy_acc", "perplexity"),
)
