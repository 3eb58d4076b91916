"""Routes before and after another one's training, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from phirt.errors import ConfigError
from phirt_quant.interference import interference
from phirt_quant.metrics import Estimate


def shares(*values: float) -> Estimate:
    return Estimate(float(np.mean(values)), np.array(values, np.float64))


def test_a_route_is_worse_where_chance_does_not_explain_it():
    right = shares(*[1.0] * 80, *[0.0] * 20)
    before = {
        "text": {"acc": right, "perplexity": shares(2.0, 4.0, 6.0)},
        "vision": {"acc": right},
        "speech": {"wer": shares(*[0.1] * 50)},
    }
    after = {
        # Two items lost: a difference of -0.02 ± 0.0141. Perplexity fell: better.
        "text": {"acc": shares(*[1.0] * 78, *[0.0] * 22), "perplexity": shares(1.0, 3.0, 5.0)},
        # Ten items lost, two won: -0.08 ± 0.0339.
        "vision": {"acc": shares(*[1.0] * 70, *[0.0] * 28, 1.0, 1.0)},
        # Every recording a little worse: no spread at all.
        "speech": {"wer": shares(*[0.11] * 50)},
        "new": {"acc": right},
    }
    found = interference(before, after)
    assert [(c.route, c.metric, round(c.gain, 3), c.is_worse) for c in found.changes] == [
        ("text", "acc", -0.02, False),
        ("text", "perplexity", 1.0, False),
        ("vision", "acc", -0.08, True),
        ("speech", "wer", -0.01, True),
    ]
    assert found.worse == ("vision", "speech")
    pairs = np.array([0.0] * 70 + [-1.0] * 10 + [0.0] * 18 + [1.0] * 2)
    assert found.changes[2].standard_error == pytest.approx(pairs.std(ddof=1) / 10)
    assert "| vision | acc | 0.8 | 0.72 | -0.08 ± 0.034 | worse |" in found.table()
    assert interference(before, before).worse == ()
    assert interference(before, after, errors=3.0).worse == ("speech",)


def test_one_item_alone_is_worse_where_it_moved():
    assert interference({"a": {"acc": shares(1.0)}}, {"a": {"acc": shares(0.0)}}).worse == ("a",)
    assert interference({"a": {"acc": shares(1.0)}}, {"a": {"acc": shares(1.0)}}).worse == ()


@pytest.mark.parametrize("after", [{}, {"a": {}}, {"a": {"acc": shares(1.0)}}])
def test_what_was_not_measured_again_is_named(after):
    with pytest.raises(ConfigError, match=r"acc of route a was measured on 2 items before and on [01] after"):
        interference({"a": {"acc": shares(1.0, 0.0)}}, after)
