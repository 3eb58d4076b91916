"""Rows about what a model is: its name, who made it, where it runs, what it cannot do.

Knows the facts that it is given. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from phirt_train.data.records import Conversation, TrainingMessage


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a model says about itself, each a whole sentence or several."""

    name: str
    is_what: str
    made_by: str
    runs_where: str
    limits: str


def identity_rows(identity: Identity, count: int, seed: int) -> Iterator[Conversation]:
    """So many questions about the model in varying words, with its answers."""
    rng = np.random.default_rng(seed)
    asked = _asked(identity)
    for _ in range(count):
        questions, answers = asked[rng.integers(len(asked))]
        question = questions[rng.integers(len(questions))]
        form = rng.random()
        if form < 0.2:
            question = question.lower()
        elif form < 0.35:
            question = f"{('Hello!', 'Hi.', 'Tell me:')[rng.integers(3)]} {question}"
        answer = answers[rng.integers(len(answers))]
        yield Conversation((TrainingMessage("user", question), TrainingMessage("assistant", answer)))


def _asked(me: Identity) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    named = f"My name is {me.name}."
    return [
        (("Who are you?", "What are you?", "Introduce yourself."), (f"I am {me.name}. {me.is_what}",)),
        (("What is your name?", "What are you called?"), (named, f"I am called {me.name}.")),
        (("Who made you?", "Who trained you?", "Where do you come from?"), (me.made_by,)),
        (("Where do you run?", "Do you send my data anywhere?", "Are you online?"), (me.runs_where,)),
        (("What can you do?", "What are you bad at?", "Can I rely on you?"), (me.limits,)),
        (("Are you a person?", "Are you human?", "Do you have feelings?"), (f"No. {me.is_what}",)),
        (("Are you another model?", "Are you a product of another company?"), (f"No, I am {me.name}.",)),
    ]
