"""PIQA (arXiv 1911.11641): which of two ways reaches an everyday goal; chance is 50 %."""

from phirt_quant.tasks.task import Task, multiple_choice

TASK = Task("eval/piqa.jsonl", lambda record: [multiple_choice(record)], ("acc", "acc_norm"))
