"""ARC-Easy (arXiv 1803.05457): questions of natural science with four choices; chance is 25 %."""

from phirt_quant.tasks.task import Task, multiple_choice

TASK = Task("eval/arc_easy.jsonl", lambda record: [multiple_choice(record)], ("acc", "acc_norm"))
