"""Where drafts come from, and how long they are: the lookup against a search of the whole text, the policy on
a clock of its own.
"""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt.generate.speculation import (
    LONGEST_RUN,
    RUN_SIZES,
    DraftPolicy,
    PromptLookup,
    RunCosts,
    Speculation,
    usual_cost,
)

PLACEHOLDER, EOS = 1, 0
NEVER = (EOS, PLACEHOLDER)
TEXTS = st.lists(st.integers(0, 5), max_size=60)


def grown(ids: list[int], at: int = 0) -> PromptLookup:
    """A lookup that got the first `at` ids at once and the others one by one."""
    lookup = PromptLookup(ids[:at], NEVER)
    for token in ids[at:]:
        lookup.add(token)
    return lookup


@given(ids=TEXTS, at=st.integers(0, 60), count=st.integers(0, 20))
def test_a_draft_is_a_continuation_that_occurred(ids, at, count):
    lookup = grown(ids, at)
    drafted = lookup.draft(count)
    assert len(drafted) <= count and not set(drafted) & set(NEVER)
    whole = ids + drafted
    places = [
        place
        for place in range(len(ids))
        if all(whole[place + step] == token for step, token in enumerate(drafted))
    ]
    matching = [
        place
        for place in places
        if lookup.match_length <= 0
        or ids[max(0, place - lookup.match_length) : place] == ids[len(ids) - lookup.match_length :]
    ]
    assert not drafted or matching


@given(ids=TEXTS, at=st.integers(0, 60))
def test_a_pair_that_occurred_is_found_with_all_that_agrees_before_it(ids, at):
    """The ids that agree are at least as many as at the latest place where the last pair occurred."""
    lookup = grown(ids, at)
    ends = [i for i in range(1, len(ids) - 1) if ids[i - 1 : i + 1] == ids[-2:]]
    if not ends or set(ids[-2:]) & set(NEVER):
        return
    agreeing = 2
    while (
        agreeing < min(16, ends[-1] + 1)
        and ids[ends[-1] - agreeing] == ids[-1 - agreeing]
        and ids[-1 - agreeing] not in NEVER
    ):
        agreeing += 1
    assert lookup.match_length >= agreeing or lookup.match_length in (0, 1)
    assert lookup.match_length > 0 or lookup.expected is None


@given(ids=TEXTS, at=st.integers(0, 60))
def test_the_expected_id_is_the_first_drafted_one(ids, at):
    lookup = grown(ids, at)
    assert lookup.draft(1) == ([] if lookup.expected is None else [lookup.expected])


def test_the_longest_match_wins_and_then_the_latest():
    assert PromptLookup([5, 6, 7, 20, 6, 7, 21, 5, 6, 7], NEVER).draft(2) == [20, 6]
    assert PromptLookup([6, 7, 20, 30, 6, 7, 21, 31, 6, 7], NEVER).draft(2) == [21, 31]


def test_a_loop_is_drafted_as_far_as_wanted():
    assert PromptLookup([9, 5, 6, 7, 5, 6, 7, 5, 6], NEVER).draft(8) == [7, 5, 6, 7, 5, 6, 7, 5]


def test_media_neither_match_nor_are_drafted():
    run = [PLACEHOLDER] * 6
    assert PromptLookup([8, 9, *run, 8, 9], NEVER).draft(4) == []
    assert PromptLookup([5, PLACEHOLDER, 6, 7, 5, PLACEHOLDER], NEVER).draft(4) == []
    assert PromptLookup([8, 9, 10, *run, 8, 9], NEVER).draft(4) == [10]


SOURCE = list(range(10, 40))


def test_a_match_goes_on_behind_a_replaced_id():
    lookup = PromptLookup([*SOURCE, 5, 10, 11, 12, 13], NEVER)
    lookup.add(99)  # in place of 14
    assert (lookup.match_length, lookup.draft(3)) == (-1, [15, 16, 17])
    lookup.add(15)
    assert (lookup.match_length, lookup.draft(2)) == (1, [16, 17])
    lookup.add(90)
    assert (lookup.match_length, lookup.draft(2)) == (-3, [17, 18])  # one id that agrees proves little
    for token in range(91, 96):
        lookup.add(token)
    assert (lookup.match_length, lookup.draft(3)) == (-8, [22, 23, 24])  # in step still
    lookup.add(97)
    assert (lookup.match_length, lookup.draft(3)) == (0, [])  # given up


@pytest.mark.parametrize(
    ("instead", "follows"),
    [
        ([15], 16),  # one id is left out
        ([18], 19),  # four
        ([90, 14], 15),  # one is put in
        ([90, 91, 92, 14], 15),  # three
        ([90, 16], 17),  # one in place of two
        ([90, 91, 92, 15], 16),  # three in place of one
    ],
)
def test_a_match_goes_on_where_ids_were_left_out_or_put_in(instead, follows):
    """The first id that agrees again is enough, though the same id is followed by others later."""
    lookup = PromptLookup([*SOURCE, *SOURCE[::-1], 5, 10, 11, 12, 13], NEVER)
    for token in instead:
        lookup.add(token)
    assert (lookup.match_length, lookup.draft(3)) == (1, list(range(follows, follows + 3)))


def test_one_id_is_no_match_far_from_where_one_broke():
    lookup = PromptLookup([*SOURCE, 5, 10, 11, 12, 13], NEVER)
    lookup.add(22)  # eight behind 14
    assert lookup.draft(1) == [15]
    lookup.add(13)  # before it
    assert lookup.draft(1) == [16]


def test_one_id_is_no_match_where_none_broke():
    lookup = PromptLookup([*SOURCE, 5], NEVER)
    lookup.add(14)
    assert (lookup.match_length, lookup.expected) == (0, None)


def test_placeholders_do_not_mend_a_match():
    source = [10, 11, 12, 13, PLACEHOLDER, 14, 15]
    lookup = PromptLookup([*source, 5, 10, 11, 12], NEVER)
    lookup.add(PLACEHOLDER)
    assert lookup.match_length == -1
    assert lookup.expected is None  # in step there is a placeholder


def simulate(costs: RunCosts, prompt, answer, cost=usual_cost) -> tuple:
    """Feeds an answer that is known; returns the sizes that were run and the seconds that they took."""
    speculation = Speculation(DraftPolicy(costs.measured), NEVER)
    speculation.begin(prompt)
    sizes = []
    for token in answer:
        if speculation.take(token) is None:
            sizes.append(1 + len(speculation.draft(LONGEST_RUN)))
            costs.record(sizes[-1], 0.01 * cost(sizes[-1]))
    assert sum(sizes) == len(sizes) + speculation.drafted
    assert len(answer) == len(sizes) + speculation.accepted
    return sizes, sum(0.01 * cost(size) for size in sizes)


def test_quotes_are_run_in_long_drafts():
    prompt = list(range(10, 400))
    sizes, seconds = simulate(RunCosts(), prompt, prompt[50:350])
    assert max(sizes) == LONGEST_RUN
    assert 300 * 0.01 / seconds > 2.8


def rewritten(ids: list[int], seed: int) -> list[int]:
    """One id of twenty is left out or replaced by up to three new ones."""
    rng, new = random.Random(seed), itertools.count(1000)
    parts = (itertools.islice(new, rng.randrange(4)) if rng.random() < 0.05 else [token] for token in ids)
    return [token for part in parts for token in part]


def test_rewriting_is_faster():
    """Where runs cost what they do on a model that is large for its machine."""
    prompt, plain, seconds = list(range(10, 500)), 0.0, 0.0
    for seed in range(8):
        answer = rewritten(prompt, seed)
        plain += 0.01 * len(answer)
        seconds += simulate(RunCosts(), prompt, answer, cost=lambda size: 1 + 0.35 * (size - 1))[1]
    assert plain / seconds > 1.68


def test_what_one_kind_of_match_shows_counts_for_others():
    """Where a text copies, short matches are trusted soon; where it does not, long ones are not."""
    copying, free = DraftPolicy(usual_cost), DraftPolicy(usual_cost)
    assert copying.run_size(2, LONGEST_RUN) <= 2
    assert free.run_size(6, LONGEST_RUN) >= 4
    for _ in range(16):
        copying.update(6, True)
        free.update(2, False)
    assert copying.run_size(2, LONGEST_RUN) >= 8
    assert free.run_size(6, LONGEST_RUN) == 1


def misleading(count: int) -> list[int]:
    """The same two ids again and again, behind them others, and always another number of others."""
    counter = itertools.count(1000)
    return [token for i in range(count) for token in (10, 11, *itertools.islice(counter, 1 + i % 8))]


def test_text_in_which_nothing_comes_true_is_decoded_plainly():
    sizes, _ = simulate(RunCosts(), [5, 6, 7], misleading(200))
    assert sum(size > 1 for size in sizes) <= 6
    assert set(sizes[100:]) == {1}


def test_drafting_begins_again_where_a_text_repeats_itself():
    useless, quote = misleading(100), list(range(100, 200))
    sizes, _ = simulate(RunCosts(), [5, 6, *quote], [*useless, *quote])
    assert set(sizes[100 : len(useless)]) == {1}
    assert max(sizes) == LONGEST_RUN
    assert len(sizes) < len(useless) + 50


def test_where_positions_cost_as_much_as_runs_nothing_is_drafted_for_long():
    def dear(size: int) -> float:
        return 1.0 if size == 1 else 1.2 * size

    loop = [10, 11, 12, 13] * 300
    costs = RunCosts()
    simulate(costs, [5, 6], loop, cost=dear)
    sizes, seconds = simulate(costs, [5, 6], loop, cost=dear)
    assert len(loop) * 0.01 / seconds > 0.97
    assert sum(size > 1 for size in sizes) < 0.05 * len(sizes)


def test_slow_runs_do_not_end_drafting():
    """One pause of the machine in the first run of each size."""
    prompt = list(range(10, 800))
    costs = RunCosts()
    costs.record(1, 0.01)
    for size in RUN_SIZES[1:]:
        costs.record(size, 60.0)
    sizes, _ = simulate(costs, prompt, prompt[50:750])
    assert sizes[-1] == LONGEST_RUN


@given(
    length=st.integers(0, 40),
    longest=st.integers(0, 40),
    runs=st.lists(st.tuples(st.sampled_from([*RUN_SIZES, 3, 5]), st.floats(0, 10)), max_size=30),
    came=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=30),
)
def test_a_run_is_never_longer_than_allowed(length, longest, runs, came):
    costs = RunCosts()
    policy = DraftPolicy(costs.measured)
    for size, seconds in runs:
        costs.record(size, seconds)
    for match_length, true in came:
        policy.update(match_length, true)
    size = policy.run_size(length, longest)
    assert size in RUN_SIZES and size <= max(1, longest)


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5, 100])
def test_drafts_keep_to_the_room_and_to_sizes_that_are_measured(room):
    speculation = Speculation(DraftPolicy(usual_cost), NEVER)
    speculation.begin(list(range(10, 100)) * 2)
    assert speculation.take(10) is None
    drafted = speculation.draft(room)
    assert len(drafted) <= room and 1 + len(drafted) in RUN_SIZES
    assert drafted == list(range(11, 11 + len(drafted)))


def test_runs_are_timed_by_the_clock_of_their_engine():
    """Measured costs approach what runs take, in steps of one position."""
    costs = RunCosts()
    for _ in range(40):
        costs.record(1, 0.02)
        costs.record(4, 0.05)
    assert costs.measured(1) == pytest.approx(1.0)
    assert costs.measured(4) == pytest.approx(2.5, abs=0.05)
    assert costs.measured(8) == pytest.approx(1 + 0.5 * 7, abs=0.2)  # never run: as the others are
