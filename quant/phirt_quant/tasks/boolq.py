"""BoolQ (arXiv 1905.10044): a passage and a question about it that is answered by yes or no."""

from phirt_quant.tasks.task import Question, Record, Task


def _question(record: Record) -> Question:
    context = f"{record['passage']}\nQuestion: {record['question'].rstrip('?')}?\nAnswer:"
    answer = record["answer"]
    if not isinstance(answer, bool):
        raise TypeError(f"answer is {answer!r}, neither true nor false")
    return Question(context, (" no", " yes"), int(answer))


TASK = Task(
    "eval/boolq.jsonl", lambda record: [_question(record)], ("acc",), examples="text/boolq.train.jsonl"
)
