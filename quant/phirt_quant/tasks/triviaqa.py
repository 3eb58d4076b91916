"""TriviaQA (arXiv 1705.03551) without its documents, rows of its configuration rc.nocontext: a question, and
all names that its answer has.

Strictly an answer is one of the names, case and punctuation left out, as lm-evaluation-harness counts, which
also puts a second question mark behind each question; loosely one of the normalised names, as the dataset's
own script compares.
"""

import re
import string

from phirt_quant.tasks.task import Exercise, Record, Task

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SIGNS = re.compile("[" + re.escape(string.punctuation + "‘’´") + "]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(name: str) -> str:
    """A name as the dataset's own script compares it: without case, signs and articles."""
    return " ".join(_ARTICLES.sub(" ", _SIGNS.sub(" ", name.lower())).split())


def _plain(name: str) -> str:
    return name.lower().translate(_PUNCTUATION)


def _exercise(record: Record) -> Exercise:
    answer = record["answer"]
    names = list(answer["aliases"]) or [answer["value"]]
    known = set(map(_plain, names))
    loosely = {*map(normalised, names), *answer["normalized_aliases"]}
    return Exercise(
        f"Question: {record['question']}?\nAnswer:",
        f" {names[0]}",
        lambda text: _plain(text.lstrip()) in known,
        stops=("\n", ".", ","),
        max_new_tokens=32,
        is_right_loosely=lambda text: normalised(text) in loosely,
    )


TASK = Task(
    "eval/triviaqa.jsonl",
    lambda record: [_exercise(record)],
    ("exact_match", "flexible_match"),
    examples="text/triviaqa.train.jsonl",
)
