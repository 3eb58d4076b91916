"""Formats under a size: never above it, and never worse than the best that trying everything finds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt_quant import allocation
from phirt_quant.allocation import Choice, allocate, allocate_within


def total(choices: list[list[Choice]], picked: list[int]) -> tuple[int, float]:
    """(bytes, cost)."""
    taken = [of[i] for of, i in zip(choices, picked, strict=True)]
    return sum(choice.bytes for choice in taken), sum(choice.cost for choice in taken)


def best(choices: list[list[Choice]], budget: int) -> float:
    """The least cost within the budget, by trying everything."""
    everything = itertools.product(*(range(len(of)) for of in choices))
    sums = (total(choices, list(picked)) for picked in everything)
    return min(cost for size, cost in sums if size <= budget)


def smallest(choices: list[list[Choice]]) -> int:
    return sum(min(choice.bytes for choice in of) for of in choices)


a_choice = st.builds(Choice, st.integers(1, 60).map(lambda n: 64 * n), st.floats(0, 10))
problems = st.lists(st.lists(a_choice, min_size=1, max_size=4), min_size=1, max_size=5)


@given(problems, st.integers(0, 20_000))
def test_nothing_of_that_size_costs_less(choices, spare):
    budget = smallest(choices) + spare
    size, cost = total(choices, allocate(choices, budget))
    assert size <= budget
    assert cost == pytest.approx(best(choices, budget), abs=1e-9)


@given(problems, st.integers(0, 20_000))
def test_steps_that_are_rounded_up_stay_within_the_budget(choices, spare):
    """The result is at least as good as the best of a budget that is a unit for each matrix smaller."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "_MOST_UNITS", 16)
        budget = smallest(choices) + spare
        size, cost = total(choices, allocate(choices, budget))
    assert size <= budget
    span = sum(max(choice.bytes for choice in of) for of in choices) - smallest(choices)
    unit = min(spare, span) // 16 + 64
    less = budget - (len(choices) + 1) * unit
    if less >= smallest(choices):
        assert cost <= best(choices, less) + 1e-9


@given(problems, st.floats(0, 40))
def test_nothing_that_costs_so_little_is_smaller(choices, most):
    size, cost = total(choices, allocate_within(choices, most))
    everything = [total(choices, list(p)) for p in itertools.product(*(range(len(of)) for of in choices))]
    within = [bytes_ for bytes_, one in everything if one <= most - 1e-9]
    if within:
        assert cost <= most + 1e-9 and size <= min(within)
    else:
        assert cost <= min(one for _, one in everything) + 1e-9


def test_the_costliest_error_is_mended_first():
    """Two equal matrices, room for one to take the larger format."""
    small, large = (100, 8.0), (180, 1.0)
    harmless = [Choice(small[0], small[1] / 10), Choice(large[0], large[1] / 10)]
    harmful = [Choice(*small), Choice(*large)]
    assert allocate([harmless, harmful, harmless], 380) == [0, 1, 0]
    assert allocate([harmless, harmful, harmless], 379) == [0, 0, 0]
    assert allocate([harmless, harmful, harmless], 10_000) == [1, 1, 1]


def test_what_costs_the_same_takes_the_fewer_bytes():
    assert allocate([[Choice(20, 1.0), Choice(10, 1.0)]], 100) == [1]


def test_a_large_model_is_solved_in_a_bounded_table():
    """Sizes of hundreds of megabytes without a common divisor."""
    choices = [
        [Choice(100_000_007 + 13 * i, 3.0 + i % 7), Choice(150_000_011 + 17 * i, 1.0)] for i in range(120)
    ]
    budget = smallest(choices) + 40 * 50_000_000
    picked = allocate(choices, budget)
    size, _ = total(choices, picked)
    assert size <= budget
    # 34 have most to lose; the few that are left go to the next ones.
    assert all(picked[i] for i in range(120) if i % 7 >= 5) and 38 <= sum(picked) <= 40
