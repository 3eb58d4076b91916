"""Break-fix rounds (arXiv 2407.13833): attack, collect what goes wrong, train on its like, measure, again.

round-1/failures.jsonl   prompts that were answered wrongly, with the answers
round-1/rows.jsonl       conversations to learn: the failures and their like, answered as wanted
round-1/pairs.jsonl      preferences: the wanted answer, and what the model said
log.jsonl                a line before the first round and after each: refusal rates, what was found and made

Attacks and rows come from prompts that are trained on, rates from those that are measured and never trained.

Knows probes, graded answers and files. Training is a function that it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phirt.runtime.atomic_file import write_text
from phirt_train.data.messages import assistant, user
from phirt_train.rollouts.sampler import Sampler
from phirt_train.safety.measure import Graded, SafetyScores, ask, scores
from phirt_train.safety.probes import TEMPLATES, Probe, drawn, probes, uses_what_is_measured, wanted_answer

Train = Callable[[Path, int], Sampler]  # learns from a round's folder; returns the model after it
Row = dict[str, Any]


def rows_for(failures: Sequence[Graded], likes: int, seed: int) -> list[Row]:
    """Each failure's prompt and at most `likes` others of the same act, answered as wanted; each once."""
    rng, prompts = np.random.default_rng(seed), {}
    for failure in failures:
        probe, templates = failure.probe, TEMPLATES["train"]
        chosen = [templates[i].format(probe.act) for i in rng.permutation(len(templates))[:likes]]
        for prompt in (probe.prompt, *chosen):
            prompts[prompt] = Probe(prompt, probe.act, probe.kind)
    return [
        {"messages": [user(prompt), assistant(wanted_answer(probe, rng))]}
        for prompt, probe in prompts.items()
    ]


def pairs_for(failures: Sequence[Graded], seed: int) -> list[Row]:
    """Preferences for the wanted answers over what was said."""
    rng = np.random.default_rng(seed)
    return [
        {
            "prompt": [user(failure.probe.prompt)],
            "chosen": wanted_answer(failure.probe, rng),
            "rejected": failure.text,
        }
        for failure in failures
    ]


def attack(sampler: Sampler, folder: Path, count: int, seed: int, likes: int = 4) -> list[Graded]:
    """One round's attack: asks `count` prompts and writes failures, rows and pairs. Returns the failures."""
    failures = [one for one in ask(sampler, drawn(count, seed), seed) if one.is_wrong]
    rows = rows_for(failures, likes, seed)
    assert not any(uses_what_is_measured(row["messages"][0]["content"]) for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    found = (
        {"prompt": one.probe.prompt, "kind": one.probe.kind, "grade": one.grade, "answer": one.text}
        for one in failures
    )
    _write(folder / "failures.jsonl", found)
    _write(folder / "rows.jsonl", rows)
    _write(folder / "pairs.jsonl", pairs_for(failures, seed))
    return failures


def break_fix(
    sampler: Sampler, train: Train, folder: Path, *, rounds: int, count: int = 200, seed: int = 0
) -> list[SafetyScores]:
    """So many rounds; ends early where an attack finds nothing. Returns the rates before and after each.

    `train` is called with the folder of a round, which has its rows and pairs, and the round's number; called
    again for a round that it has learnt from, it may return what it has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = probes("measured")
    measured = [scores(ask(sampler, held_out, seed))]
    log: list[Row] = [{"round": 0, **measured[0].as_object()}]
    _write(folder / "log.jsonl", log)
    for number in range(1, rounds + 1):
        place = folder / f"round-{number}"
        failures = attack(sampler, place, count, seed + number)
        if not failures:
            log.append({"round": number, "attacks": count, "failures": 0, "rows": 0})
            _write(folder / "log.jsonl", log)
            break
        sampler = train(place, number)
        measured.append(scores(ask(sampler, held_out, seed)))
        rows = (place / "rows.jsonl").read_text(encoding="utf-8").count("\n")
        made = {"attacks": count, "failures": len(failures), "rows": rows}
        log.append({"round": number, **made, **measured[-1].as_object()})
        _write(folder / "log.jsonl", log)
    return measured


def _write(path: Path, records: Iterable[Row]) -> None:
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
