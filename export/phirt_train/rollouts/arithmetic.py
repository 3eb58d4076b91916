"""Equations that are written in an answer: found, computed exactly, and compared.

Both forms count: the calculator's annotations of GSM8K (arXiv 2110.14168), `<<48/2=24>>`, and plain ones such
as `48 / 2 = 24`. Numbers are fractions, so nothing is rounded but what the text itself has rounded.

Knows arithmetic with + - * / and brackets. Knows nothing of questions.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

_MAX_LENGTH = 200  # characters of one equation: what is longer is no sum of a word problem
_NUMBER = r"\d[\d,]*(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(rf"\s*({_NUMBER}|[-+*/()%])")
_ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_SIGNS = str.maketrans({"×": "*", "x": "*", "X": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "$": None})
_AROUND = re.compile(r" ?([-+*/=%]) ?|(?<=\() | (?=\))")
# At least one operator between numbers, then an equals sign and a number that no further operator follows.
# What begins behind "apples x" or in a mixed number ("1 1/2") is part of something else. Spaces are gone
# before, so that there is one way to match and it takes linear time.
_OPERAND = rf"\(*-?(?:{_NUMBER})%?\)*"
_PLAIN = re.compile(
    rf"(?<![\w.*/+-])(?<!\d )({_OPERAND}(?:[-+*/]{_OPERAND})+)=(-?(?:{_NUMBER})%?)(?![\w(]| \d|[-+*/][\d(])"
)


@dataclasses.dataclass(frozen=True)
class Equation:
    """A written equation: its left side without spaces, and its right side."""

    left: str
    right: str

    @property
    def computes(self) -> bool:
        """Whether the left side has the value of the right one. A right side with decimals may be rounded or
        cut at its last one, and "50% + 10% = 60" names the unit once.
        """
        left, right = evaluate(self.left), evaluate(self.right)
        if left is None or right is None:
            return False
        decimals = len(self.right.rstrip("%").partition(".")[2])
        unit = Fraction(1, 10**decimals)
        if self.right.endswith("%"):
            right *= 100
            left = left * 100 if "%" in self.left else left
        elif "%" in self.left and not {"*", "/"} & set(self.left):
            left *= 100
        return abs(left - right) < unit if decimals else left == right


def equations(text: str) -> tuple[Equation, ...]:
    """The equations of a text in their order. One that is annotated and written out beside it counts once."""
    return tuple(equation for line in text.splitlines() for equation in _of_line(" ".join(line.split())))


def _of_line(line: str) -> list[Equation]:
    """The equations of a line with single spaces, by where they stand once annotations are taken out."""
    found: list[tuple[int, Equation]] = []
    bare, end = "", 0
    for match in _ANNOTATION.finditer(line):
        bare += _squeezed(line[end : match.start()])
        found.append((len(bare), _equation(*match.groups())))
        end = match.end()
    annotated = {equation for _, equation in found}
    bare += _squeezed(line[end:])
    for match in _PLAIN.finditer(bare):
        equation = _equation(*match.groups())
        # A bracket that the match has cut off belongs to the sentence.
        if equation not in annotated and equation.left.count("(") == equation.left.count(")"):
            found.append((match.start(), equation))
    return [equation for _, equation in sorted(found, key=lambda one: one[0])]


def _squeezed(text: str) -> str:
    """The text without currency signs, with plain operators and no spaces around them."""
    return _AROUND.sub(r"\1", text.translate(_SIGNS))


def _equation(left: str, right: str) -> Equation:
    return Equation(*("".join(side.translate(_SIGNS).replace(",", "").split()) for side in (left, right)))


def evaluate(text: str) -> Fraction | None:
    """The value of an expression; None where it is none, or divides by zero."""
    if len(text) > _MAX_LENGTH:
        return None
    tokens, place = [], 0
    plain = text.translate(_SIGNS).strip()
    while place < len(plain):
        match = _TOKEN.match(plain, place)
        if match is None:
            return None
        tokens.append(match[1])
        place = match.end()
    try:
        return _Parser(tokens).whole()
    except (_NoExpressionError, ZeroDivisionError):
        return None


class _NoExpressionError(Exception):
    """The tokens are no expression."""


class _Parser:
    """Sums of products of factors, by recursive descent; a factor may be in percent."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._place = 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self._place != len(self._tokens):
            raise _NoExpressionError
        return value

    def _next(self, *accepted: str) -> str | None:
        if self._place < len(self._tokens) and self._tokens[self._place] in accepted:
            self._place += 1
            return self._tokens[self._place - 1]
        return None

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._next("+", "-"):
            other = self._product()
            value = value + other if sign == "+" else value - other
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._next("*", "/"):
            other = self._factor()
            value = value * other if sign == "*" else value / other
        return value

    def _factor(self) -> Fraction:
        if sign := self._next("+", "-"):
            return self._factor() if sign == "+" else -self._factor()
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise _NoExpressionError
        elif self._place < len(self._tokens) and self._tokens[self._place][0] in "0123456789.":
            value = Fraction(self._tokens[self._place].replace(",", ""))
            self._place += 1
        else:
            raise _NoExpressionError
        return value / 100 if self._next("%") else value
