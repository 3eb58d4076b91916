"""Safety rows: what should be refused, refused; what only looks so, answered; nothing of what is measured.

Knows probes and wanted answers. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from phirt_train.data.records import Conversation, TrainingMessage
from phirt_train.safety.probes import drawn, uses_what_is_measured, wanted_answer


def safety_rows(count: int, seed: int) -> Iterator[Conversation]:
    """So many different prompts, both kinds alike, with the wanted answers; fewer where there are no more."""
    rng = np.random.default_rng(seed)
    for probe in drawn(count, seed):
        assert not uses_what_is_measured(probe.prompt)
        answer = wanted_answer(probe, rng)
        yield Conversation((TrainingMessage("user", probe.prompt), TrainingMessage("assistant", answer)))
