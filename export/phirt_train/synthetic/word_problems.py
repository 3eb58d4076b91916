"""Word problems of one and two steps with their working, as GSM8K writes it.

Numbers of problems that are measured with do not occur: neither all the numbers of one together, nor the two
of one of its equations.

Knows templates and sums. Knows nothing of models or files. A problem is a function of a seed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from phirt_train.rollouts.arithmetic import evaluate
from phirt_train.rollouts.questions import Question

Numbers = tuple[int, ...]

_NAMES = (
    "Ada", "Ben", "Clara", "Dan", "Ella", "Finn", "Greta", "Hugo", "Ines", "Jonas", "Kim", "Lena", "Milo",
    "Nora", "Otto", "Pia", "Quinn", "Rosa", "Sam", "Tara", "Uri", "Vera", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
_THINGS = (
    "shells", "stamps", "beads", "coins", "buttons", "cards", "postcards", "pebbles", "stickers", "candles",
    "tiles", "seeds", "nails", "ribbons", "lemons", "chestnuts", "tickets", "bricks", "feathers", "spoons",
)  # fmt: skip
_BOXES = ("boxes", "bags", "jars", "drawers", "baskets", "trays")
_STEP = re.compile(r"([a-z])(?:([-+*/])([a-z]))")
_MOST_TRIES = 2000


@dataclasses.dataclass(frozen=True)
class _Template:
    """A text, and its steps: what each computes from earlier values, and the sentence around it. `small` are
    values that count boxes and such; `multiples` are drawn as multiples of another value.
    """

    text: str
    steps: tuple[tuple[str, str, str], ...]
    small: str = ""
    multiples: Mapping[str, str] = dataclasses.field(default_factory=dict)


_ONE = (
    _Template("{n} has {a} {t} and finds {b} more. How many {t} does {n} have now?",
              (("x", "a+b", "{n} has {} {t}."),)),
    _Template("There are {a} {t} on a table and {b} {t} on a shelf. How many {t} are there in all?",
              (("x", "a+b", "There are {} {t}."),)),
    _Template("{n} has {a} {t}. {m} has {b} {t} more than {n}. How many {t} does {m} have?",
              (("x", "a+b", "{m} has {} {t}."),)),
    _Template("{n} had {a} {t} and gave {b} of them to {m}. How many {t} are left?",
              (("x", "a-b", "There are {} {t} left."),)),
    _Template("{n} wants {a} {t} and has {b}. How many {t} are missing?",
              (("x", "a-b", "There are {} {t} missing."),)),
    _Template("{n} has {a} {t} and {m} has {b}. How many more {t} does {n} have than {m}?",
              (("x", "a-b", "{n} has {} {t} more."),)),
    _Template("{n} has {a} {x} with {b} {t} in each. How many {t} does {n} have?",
              (("x", "a*b", "There are {} {t}."),), small="a"),
    _Template("{n} sells {a} {t} every day. How many {t} does {n} sell in {b} days?",
              (("x", "a*b", "{n} sells {} {t}."),), small="b"),
    _Template("{n} puts {a} {t} into {b} {x}, equally many into each. How many {t} are in one of them?",
              (("x", "a/b", "There are {} {t} in each."),), small="b", multiples={"a": "b"}),
    _Template("{n} puts {b} {t} into each of some {x}. There are {a} {t}. How many {x} are needed?",
              (("x", "a/b", "{n} needs {} {x}."),), small="b", multiples={"a": "b"}),
)  # fmt: skip
_TWO = (
    _Template("{n} had {a} {t}, gave {b} to {m} and then bought {c} more. How many {t} does {n} have now?",
              (("x", "a-b", "After the gift there were {} {t}."), ("y", "x+c", "Now there are {} {t}."))),
    _Template("{n} has {a} {x} with {b} {t} in each, and {c} {t} beside them. How many {t} are there?",
              (("x", "a*b", "In the {x} are {} {t}."), ("y", "x+c", "In all there are {} {t}.")),
              small="a"),
    _Template("{n} has {a} {x} with {b} {t} in each and loses {c} {t}. How many {t} are left?",
              (("x", "a*b", "At first there were {} {t}."), ("y", "x-c", "Then there are {} {t}.")),
              small="a"),
    _Template("{n} has {a} {t} and {m} has {b}. They share all of them equally among {c} friends. How many "
              "{t} does each friend get?",
              (("x", "a+b", "Together they have {} {t}."), ("y", "x/c", "Each friend gets {} {t}.")),
              small="c"),
    _Template("{n} has {a} {t}. {m} has {b} times as many. How many {t} do they have together?",
              (("x", "a*b", "{m} has {} {t}."), ("y", "a+x", "Together they have {} {t}.")), small="b"),
    _Template("{n} packs {a} {t} into {b} {x}, equally many into each, then takes {c} {t} out of one. How "
              "many {t} are left in that one?",
              (("x", "a/b", "At first each has {} {t}."), ("y", "x-c", "Then there are {} {t} in it.")),
              small="b", multiples={"a": "b"}),
)  # fmt: skip
_SHAPES = {"one step": _ONE, "two steps": _TWO}
_RANGES = {"to 20": 20, "to 1000": 1000}
LEVELS = tuple(f"{steps}, {size}" for steps in _SHAPES for size in _RANGES)


def numbers_of(text: str) -> Numbers:
    """The whole numbers of a text, sorted."""
    return tuple(sorted(int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", text)))


def taken_numbers(problems: Iterable[Mapping[str, str]]) -> frozenset[Numbers]:
    """What must not occur: of each measured problem the numbers of its text, and those of its equation.

    Args:
        problems: records with `context` and `chain_of_thought`, as SVAMP's are.
    """
    taken = set()
    for problem in problems:
        taken.add(numbers_of(problem["context"]))
        taken.add(
            tuple(sorted(int(float(one)) for one in re.findall(r"[\d.]+", problem["chain_of_thought"])))
        )
    return frozenset(taken)


def word_problems(
    count: int, seed: int, level: str, taken: Collection[Numbers] = frozenset()
) -> Iterator[Question]:
    """So many different problems of a level, with their working as the answer."""
    rng, seen = np.random.default_rng((seed, LEVELS.index(level))), set[str]()
    steps, _, size = level.partition(", ")
    tries = 0
    while len(seen) < count:
        tries += 1
        assert tries < _MOST_TRIES * (count + 1), f"there are not {count} different problems of level {level}"
        templates = _SHAPES[steps]
        made = _made(templates[rng.integers(len(templates))], _RANGES[size], rng, taken)
        if made is not None and made[0] not in seen:
            seen.add(made[0])
            yield Question(made[0], answer=made[1], level=level)


def _made(
    template: _Template, most: int, rng: np.random.Generator, taken: Collection[Numbers]
) -> tuple[str, str] | None:
    """A problem and its working; None where the numbers that were drawn do not fit."""
    values = _drawn(template, most, rng)
    given = tuple(sorted(values.values()))
    first, second = rng.choice(len(_NAMES), 2, replace=False)
    words = {
        "n": _NAMES[first], "m": _NAMES[second], "t": _THINGS[rng.integers(len(_THINGS))],
        "x": _BOXES[rng.integers(len(_BOXES))],
    }  # fmt: skip
    text = template.text.format(**words, **values)
    lines = []
    for name, formula, sentence in template.steps:
        match = _STEP.fullmatch(formula)
        assert match is not None
        left, sign, right = values[match[1]], match[2], values[match[3]]
        result = evaluate(f"{left}{sign}{right}")
        if result is None or result.denominator != 1 or not 0 < result <= 4 * most:
            return None
        if tuple(sorted((left, right))) in taken:
            return None
        values[name] = int(result)
        equation = f"{left} {sign} {right} = <<{left}{sign}{right}={values[name]}>>{values[name]}"
        lines.append(sentence.format(equation, **words))
    if given in taken:
        return None
    return text, "\n".join([*lines, f"#### {values[template.steps[-1][0]]}"])


def _drawn(template: _Template, most: int, rng: np.random.Generator) -> dict[str, int]:
    names = sorted(set(re.findall(r"\{([abc])\}", template.text)))
    values = {name: int(rng.integers(2, 10 if name in template.small else most + 1)) for name in names}
    for name, of in template.multiples.items():
        values[name] = values[of] * int(rng.integers(2, max(3, most // values[of] + 1)))
    return values
