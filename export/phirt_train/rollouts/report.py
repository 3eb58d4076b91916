"""What came of a run, by level: how often answers are right, how many questions lie in the band.

Knows judged questions. Knows nothing of how they came about or are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from phirt_train.rollouts.selection import Judged, Selection

ALL = "all"


@dataclasses.dataclass(frozen=True)
class LevelReport:
    """Figures of one level.

    Attributes:
        p: the mean share of right answers.
        easier, in_band, harder: questions above, in and below the band.
        wrong_answers, wrong_equations, cut: answers that are not right, and why.
        accepted: conversations to learn; gold: those of them that are gold paths.
        pairs: preference pairs.
        tenths: questions by their share of right answers, in ten equal steps; the last one includes 1.
    """

    questions: int
    samples: int
    p: float
    easier: int
    in_band: int
    harder: int
    wrong_answers: int
    wrong_equations: int
    cut: int
    accepted: int
    pairs: int
    tenths: tuple[int, ...]


def is_in_band(judged: Judged, selection: Selection) -> bool:
    """Whether a question is neither too easy nor too hard."""
    return selection.least <= judged.share <= selection.most


def report(
    judged: Sequence[Judged], selection: Selection, counts: Sequence[tuple[int, int]]
) -> dict[str, LevelReport]:
    """Figures by level and of all; `counts` has of each question the accepted conversations and the pairs."""
    levels = sorted({one.question.level for one in judged} - {ALL})
    both = list(zip(judged, counts, strict=True))
    found = {level: [pair for pair in both if pair[0].question.level == level] for level in levels}
    return {level: _level(pairs, selection) for level, pairs in [*found.items(), (ALL, both)]}


def _level(pairs: Sequence[tuple[Judged, tuple[int, int]]], selection: Selection) -> LevelReport:
    judged = [one for one, _ in pairs]
    verdicts = [said for one in judged for said in one.verdicts]
    inside = sum(is_in_band(one, selection) for one in judged)
    easier = sum(one.share > selection.most for one in judged)
    tenths = [0] * 10
    for one in judged:
        tenths[min(9, 10 * one.verdicts.count("right") // len(one.verdicts))] += 1
    return LevelReport(
        questions=len(judged),
        samples=len(verdicts),
        p=sum(one.share for one in judged) / max(1, len(judged)),
        easier=easier,
        in_band=inside,
        harder=len(judged) - inside - easier,
        wrong_answers=verdicts.count("wrong answer"),
        wrong_equations=verdicts.count("wrong equation"),
        cut=verdicts.count("cut"),
        accepted=sum(learnt for _, (learnt, _) in pairs),
        pairs=sum(preferred for _, (_, preferred) in pairs),
        tenths=tuple(tenths),
    )
