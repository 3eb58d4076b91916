"""Pages of Wikipedia without their leads: how much of a lead's first sentence is in what a model writes
behind "TL;DR:", as GPT-2's report asks for summaries.
"""

from phirt_quant.sentences import first_sentences, whole_paragraphs
from phirt_quant.tasks.task import Exercise, Record, Task

_CHARACTERS = 1500  # of a page that is summed up
_LEAST_RATIO = 3  # a page is so many times as long as its summary


def _exercises(record: Record) -> list[Exercise]:
    lead, *body = [part for part in record["text"].split("\n\n") if part.strip()]
    summary, text = first_sentences(lead, 1), whole_paragraphs(body, _CHARACTERS)
    if len(text) < _LEAST_RATIO * len(summary) or summary in text:
        return []

    def is_right(said: str) -> bool:
        return said.strip() == summary

    context = f"{record['title']}\n\n{text}\n\nTL;DR:"
    return [Exercise(context, f" {summary}", is_right, stops=("\n",), max_new_tokens=64)]


TASK = Task("text/wikipedia.val.jsonl", _exercises, ("rouge_l",))
