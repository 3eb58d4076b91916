"""Hits by hand: what a set holds goes with 200 characters on both sides, and little more."""

from __future__ import annotations

import pytest

from phirt_train.curate.decontamination import DecontaminationConfig, decontaminate, evaluation_runs

QUESTION = "Which of these things would you need most if you wanted to grow a plant in a desert?"
HIDDEN = "which OF these, things would you need -- most if you wanted to grow"  # 13 words of it
FILLER = "".join(f"Sentence {n} is filler. " for n in range(100, 140))  # 24 characters each
CONFIG = DecontaminationConfig()


def _sets(*texts: str) -> list:  # type: ignore[type-arg]
    return [evaluation_runs("asked", texts, 13), evaluation_runs("other", ["Of " * 20], 13)]


def test_a_clean_text_stays_as_it_is() -> None:
    found = decontaminate(FILLER, _sets(QUESTION), CONFIG)
    assert (found.pieces, found.hits, found.too_dirty) == ((FILLER,), (0, 0), False)


def test_a_hit_goes_with_its_surroundings() -> None:
    found = decontaminate(FILLER + HIDDEN + " " + FILLER, _sets(QUESTION), CONFIG)
    assert found.hits == (1, 0) and not found.too_dirty
    assert found.pieces == (FILLER[:-200].strip(), FILLER[199:].strip())


def test_twelve_words_are_no_hit() -> None:
    found = decontaminate(FILLER + HIDDEN.rsplit(" ", 1)[0] + ". " + FILLER, _sets(QUESTION), CONFIG)
    assert found.hits == (0, 0) and len(found.pieces) == 1


def test_two_runs_of_fourteen_words_are_one_place() -> None:
    found = decontaminate(FILLER + HIDDEN + " a " + FILLER, _sets(QUESTION), CONFIG)
    assert found.hits == (2, 0) and len(found.pieces) == 2


def test_pieces_that_are_too_short_go() -> None:
    found = decontaminate(FILLER + HIDDEN + " " + FILLER[:390], _sets(QUESTION), CONFIG)
    assert found.hits[0] == 1
    assert found.pieces == (FILLER[:-200].strip(),)  # 190 characters are left behind it
    assert decontaminate(HIDDEN, _sets(QUESTION), CONFIG).pieces == ()


@pytest.mark.parametrize(("places", "too_dirty"), [(9, False), (10, True)])
def test_a_text_in_too_many_pieces_goes(places: int, too_dirty: bool) -> None:
    found = decontaminate((FILLER + HIDDEN + " ") * places + FILLER, _sets(QUESTION), CONFIG)
    assert (found.hits[0], found.too_dirty) == (places, too_dirty)
    assert len(found.pieces) == (0 if too_dirty else places + 1)


def test_hits_are_counted_for_each_set() -> None:
    sets = [evaluation_runs("a", [QUESTION], 13), evaluation_runs("b", ["x", QUESTION], 13)]
    assert decontaminate(HIDDEN, sets, CONFIG).hits == (1, 1)
    assert [(one.texts, one.short) for one in sets] == [(1, 0), (2, 1)]
