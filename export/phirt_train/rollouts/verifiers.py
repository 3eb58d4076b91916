"""Whether an answer is right: by its number, its words, its calls of tools, or what a program can check.

`strict` and `flexible` find a number as lm-evaluation-harness does for GSM8K (arXiv 2110.14168): behind
"#### ", or the last one of the text. `number` takes the last one of what is stated behind the last "####" or
"answer is", so that "the answer is 2 + 3 = 5" is 5, and where neither is there the last one of the text; it
compares values, so that 72, 72.0 and $72.00 are equal, and 3/4 is 0.75.

Knows questions and answers. Knows nothing of models; a new verifier is a function and its name in VERIFIERS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from phirt.errors import ConfigError
from phirt.prompt.tools import Tools, parse_tool_calls
from phirt_train.rollouts.constraints import read_constraints
from phirt_train.rollouts.questions import Question

Verifier = Callable[[Question, str], bool]

_NUMBER = re.compile(r"(?<![\w.])-?\s?\$?\s?(\d[\d,]*(?:\.\d+)?|\.\d+)(?:/(0*[1-9]\d*)\b)?")
_END = re.compile(r"[.!?](?=\s|$)|\n")  # of a statement
_MARK = re.compile(r"####|answer\s+is", re.IGNORECASE)
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def number_of(text: str) -> Fraction | None:
    """The number that a text gives as its answer: the last one of the statement behind its last mark, or
    of all.
    """
    marks = list(_MARK.finditer(text))
    if marks and (first := _NUMBER.search(text, marks[-1].end())):
        end = _END.search(text, first.end())
        text = text[first.start() : end.start() if end else None]
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(match: re.Match[str]) -> Fraction:
    value = Fraction(match[1].replace(",", "")) / int(match[2] or 1)
    return -value if match[0].startswith("-") else value


def by_number(question: Question, text: str) -> bool:
    """Whether both give the same number."""
    wanted = number_of(_gold(question, "number"))
    if wanted is None:
        raise ConfigError(f"the answer of a question holds no number: {question.answer!r:.80}")
    return number_of(text) == wanted


def strictly(question: Question, text: str) -> bool:
    """Whether the first number behind "#### " is written as the right one is, commas and such left out."""
    found = _STRICT.findall(text)
    return bool(found) and _plain(found[0].strip()) == _plain(_gold(question, "strict"))


def flexibly(question: Question, text: str) -> bool:
    """The same for the last number of the text, wherever it stands."""
    found = [first or second for first, second in _FLEXIBLE.findall(text)]
    return bool(found) and _plain(found[-1].strip()) == _plain(_gold(question, "flexible"))


def _plain(text: str) -> str:
    """As lm-evaluation-harness compares GSM8K's answers."""
    for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(pattern, "", text)
    return text.lower()


def exactly(question: Question, text: str) -> bool:
    """Whether the text is the right answer, spaces at its ends left out."""
    return text.strip() == _gold(question, "exact").strip()


def by_calls(question: Question, text: str) -> bool:
    """Whether the text calls the right tools with the right arguments, in their order."""
    if not question.calls:
        raise ConfigError(f"a question has no 'calls', which the verifier tools needs: {_shown(question)}")
    made = parse_tool_calls(text, Tools.of(question.tools))
    return len(made) == len(question.calls) and all(
        call.name == wanted.name and _equal(dict(call.arguments), dict(wanted.arguments))
        for call, wanted in zip(made, question.calls, strict=True)
    )


def _equal(made: Any, wanted: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    if isinstance(made, bool) or isinstance(wanted, bool):
        return made is wanted
    if isinstance(made, Mapping) and isinstance(wanted, Mapping):
        return set(made) == set(wanted) and all(_equal(made[key], wanted[key]) for key in made)
    if isinstance(made, list | tuple) and isinstance(wanted, list | tuple):
        return len(made) == len(wanted) and all(map(_equal, made, wanted))
    return bool(made == wanted)


def by_constraints(question: Question, text: str) -> bool:
    """Whether the text fulfils all of the question's constraints."""
    if not question.constraints:
        raise ConfigError(
            f"a question has no 'constraints', which the verifier constraints needs: {_shown(question)}"
        )
    return all(constraint.holds(text) for constraint in read_constraints(question.constraints))


def _gold(question: Question, verifier: str) -> str:
    if question.answer is None:
        raise ConfigError(
            f"a question has no 'answer', which the verifier {verifier} needs: {_shown(question)}"
        )
    return question.answer


def _shown(question: Question) -> str:
    return repr(question.asked[-1].content)[:80]


VERIFIERS: Mapping[str, Verifier] = {
    "number": by_number,
    "strict": strictly,
    "flexible": flexibly,
    "exact": exactly,
    "tools": by_calls,
    "constraints": by_constraints,
}


def find_verifier(name: str) -> Verifier:
    """A verifier by its name. Raises ConfigError naming those that there are."""
    if name not in VERIFIERS:
        raise ConfigError(f"there is no verifier {name!r:.80}; choose from {', '.join(VERIFIERS)}")
    return VERIFIERS[name]
