"""The runtime's engine on exported decoders: greedy ids equal the reference model's, on every route, across
regimes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import IMAGE

from phirt.bundle.files import load_manifest
from phirt.generate.engine import Engine
from phirt.generate.sequence import Adapter, MediaSpan, Prompt
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig


@pytest.mark.parametrize("route", ["none", "vision", "speech"])
def test_greedy_ids_equal_the_reference(exported, route):
    manifest = load_manifest(exported.bundle)
    engine = Engine(Session(manifest, "decoder", SessionConfig(Device.cpu(1))), manifest, prefill_chunk=8)
    rows = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    ids = [5, 9, *[IMAGE] * 6, 7, 20, 30]
    prompt = Prompt(np.array(ids, np.int64), (MediaSpan(2, rows, "picture"),), Adapter(route))
    # 45 new tokens carry the model with two regimes across its original context of 40.
    answer = list(engine.generate(prompt, lambda logits: choose(logits), max_new_tokens=45, eos=()))
    for token in answer:
        with torch.no_grad():
            logits = exported.model(torch.tensor([ids]), torch.from_numpy(rows), route)[0, -1].numpy()
        assert token == choose(logits)
        ids.append(token)
    assert len(answer) == 45


def choose(logits: np.ndarray) -> int:
    """The most likely id that is neither special nor a placeholder."""
    return 5 + int(np.argmax(logits[5:]))
