"""One round of break-fix as a step (arXiv 2407.13833): both refusal rates are measured, the model is
attacked, and what went wrong becomes rows and pairs to learn from.

It makes rows.jsonl (conversations), failures.jsonl, and, where an attack found something, pairs.jsonl
(preferences). A recipe alternates such steps with stages that learn their rows; the last one shows what the
rounds reached. Rates are of prompts that no row is made from. Knows options and files; probes and grades are
`phirt_train.safety`'s matter.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np

import phirt
from phirt.fields import Range
from phirt.runtime.atomic_file import write_text
from phirt_export.reference import ModelConfig
from phirt_train.data.messages import assistant, user
from phirt_train.rollouts.sampler import BundleSampler
from phirt_train.safety.measure import ask, scores
from phirt_train.safety.probes import Probe, drawn, probes, wanted_answer
from phirt_train.safety.rounds import attack
from phirt_train.step import StepContext, StepKind, StepOutcome

_Count = Annotated[int, Range(0, 1 << 20)]
_KEPT_SEED = 1000  # rows that no attack asked for are drawn apart from those that it asks


@dataclasses.dataclass(frozen=True)
class SafetyRoundOptions:
    """How hard the model is tried.

    Attributes:
        attacks: prompts that are tried; 0 to measure alone.
        likes: further rows of the same act for each failure.
        kept: rows beside those that failures give, so that what is refused rightly stays so.
        measured: most of the held-out probes, spread evenly over both kinds; None for all.
        max_new_tokens: of an answer.
    """

    attacks: _Count = 200
    likes: _Count = 4
    kept: _Count = 40
    measured: Annotated[int, Range(2, 1 << 20)] | None = None
    max_new_tokens: Annotated[int, Range(1, 1 << 16)] = 48

    def __post_init__(self) -> None:
        kinds = [one.kind for one in probes("train")]
        most = 2 * min(kinds.count(kind) for kind in set(kinds))  # of both alike
        for name, count in (("attacks", self.attacks), ("kept", self.kept)):
            if count > most:
                raise ValueError(f"{name} is {count}, accepted: at most the {most} prompts that there are")

    def check(self, model: ModelConfig) -> None:
        """Every model can answer."""

    def files(self) -> Iterable[str]:
        """Probes are the package's own."""
        return ()


def safety_round(options: SafetyRoundOptions, context: StepContext) -> StepOutcome:
    """Measure, attack, and write what is to be learnt."""
    config = phirt.GenerationConfig(max_new_tokens=options.max_new_tokens, temperature=0.0)
    with phirt.load(context.bundle()) as model:
        sampler = BundleSampler(model, config)
        held_out = evenly(probes("measured"), options.measured)
        asked = ask(
            sampler, held_out, context.seed, lambda done, of: context.note("probing", done, of, "probes")
        )
        rates = scores(asked)
        failures = attack(sampler, context.output, options.attacks, context.seed, options.likes)
    rows = context.output / "rows.jsonl"
    _keep(options, context)
    pairs = context.output / "pairs.jsonl"
    if not failures:  # a stage names the pairs as optional
        pairs.unlink()
    write_text(context.output / "rates.json", json.dumps(rates.as_object(), indent=1) + "\n")
    figures = {
        "refused of unsafe": rates.unsafe.refused,
        "refused of look-alikes": rates.look_alike.refused,
        "failures": float(len(failures)),
        "rows": float(rows.read_text(encoding="utf-8").count("\n")),
    }
    return StepOutcome(len(asked) + options.attacks, figures, "answers")


def _keep(options: SafetyRoundOptions, context: StepContext) -> None:
    """Adds rows that are wanted whether or not the attack failed there."""
    rng = np.random.default_rng((context.seed, _KEPT_SEED))
    kept = drawn(options.kept, context.seed + _KEPT_SEED)
    lines = [{"messages": [user(one.prompt), assistant(wanted_answer(one, rng))]} for one in kept]
    rows = context.output / "rows.jsonl"
    more = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(rows, rows.read_text(encoding="utf-8") + more)


def evenly(every: Sequence[Probe], most: int | None) -> list[Probe]:
    """At most so many probes, half of each kind, spread evenly over those that there are."""
    found: list[Probe] = []
    for kind in ("unsafe", "look-alike"):
        own = [one for one in every if one.kind == kind]
        count = len(own) if most is None else min(len(own), most // 2)
        found += [own[index * len(own) // count] for index in range(count)]
    return found


KIND = StepKind(SafetyRoundOptions, safety_round)
