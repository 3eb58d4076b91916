"""OpenTriviaQA: general knowledge with two to four choices."""

from phirt_quant.tasks.task import Question, Record, Task


def _question(record: Record) -> Question:
    choices = record["choices"]
    context = f"Question: {record['question']}\nAnswer:"
    return Question(context, tuple(f" {choice}" for choice in choices), choices.index(record["answer"]))


TASK = Task(
    "text/trivia.val.jsonl",
    lambda record: [_question(record)],
    ("acc", "acc_norm", "acc_mutual_info"),
    examples="text/trivia.train.jsonl",
)
