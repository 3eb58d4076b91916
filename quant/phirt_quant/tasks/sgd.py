"""Schema-Guided Dialogue (arXiv 1909.05855): how well each turn of an assistant is foreseen."""

from phirt_quant.tasks.task import Question, Record, Task


def _turns(record: Record) -> list[Question]:
    """Each of the assistant's turns after all that was said before."""
    said, questions = "", []
    for turn in record["turns"]:
        if turn["role"] == "assistant" and turn["text"]:
            questions.append(Question(f"{said}Assistant:", (f" {turn['text']}",)))
        said += f"{turn['role'].capitalize()}: {turn['text']}\n"
    return questions


TASK = Task("eval/sgd.dev.jsonl", _turns, ("bits_per_byte",))
