"""MMLU (arXiv 2009.03300): questions of 57 subjects with four choices, of which the letter is asked; chance
is 25 %.
"""

from phirt_quant.tasks.task import Question, Record, Task

_LETTERS = "ABCD"


def _question(record: Record) -> Question:
    """`answer` is an index, or the letter."""
    answer, subject = record["answer"], record["subject"].replace("_", " ")
    choices = [f"{letter}. {text}" for letter, text in zip(_LETTERS, record["choices"], strict=True)]
    return Question(
        "\n".join([record["question"].strip(), *choices, "Answer:"]),
        tuple(f" {letter}" for letter in _LETTERS),
        _LETTERS.index(answer) if isinstance(answer, str) else int(answer),
        preface=f"The following are multiple choice questions (with answers) about {subject}.\n\n",
    )


TASK = Task("eval/mmlu.jsonl", lambda record: [_question(record)], ("acc",), examples="eval/mmlu.dev.jsonl")
