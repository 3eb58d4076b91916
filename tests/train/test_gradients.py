"""Steps cut into parts: the same gradients and losses as in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_train.gradients import sum_gradients
from phirt_train.objective import shares_of
from phirt_train.progress import ignore


@given(st.integers(1, 64), st.none() | st.integers(1, 80), st.integers(1, 4))
def test_the_shares_of_all_processes_hold_every_item_once(
    toy: Any, own: int, micro_batch: int | None, processes: int
) -> None:
    stage = toy.toy_config(batch=own * processes, micro_batch=micro_batch)
    dealt = [shares_of(stage, process, processes) for process in range(processes)]
    assert len({len(shares) for shares in dealt}) == 1  # every process takes as many passes
    parts = [share.of(range(stage.batch)) for shares in dealt for share in shares]
    assert [item for part in parts for item in part] == list(range(stage.batch))
    assert all(0 < len(part) <= (micro_batch or stage.batch) for part in parts)


def test_a_batch_that_cannot_be_dealt_out_is_refused(toy: Any) -> None:
    with pytest.raises(
        ConfigError, match="batch of stage toy is 8; accepted with 3 processes: multiples of 3"
    ):
        shares_of(toy.toy_config(), 0, 3)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8])
def test_gradients_are_those_of_the_whole_step(toy: Any, micro_batch: int) -> None:
    found = []
    for part in (None, micro_batch):
        stage, model = toy.toy_config(micro_batch=part), toy.ToyModel()
        objective, parameters = toy.ToyObjective(model, stage), list(model.parameters())
        batches = [objective.prepare(0, share) for share in shares_of(stage)]
        figures = sum_gradients(batches, objective.loss, parameters)
        found.append((figures, [parameter.grad for parameter in parameters]))
    (whole, exact), (parted, summed) = found
    assert parted.loss == pytest.approx(whole.loss, rel=1e-6) and parted.units == whole.units == 8
    for one, other in zip(exact, summed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_a_stage_in_parts_ends_where_the_whole_one_does(toy: Any, tmp_path: Path) -> None:
    ends = []
    for micro_batch in (None, 3):
        run = toy.toy_run(tmp_path / str(micro_batch), toy.toy_config(micro_batch=micro_batch))
        ends.append((run.run(ignore), run.parameters))
    assert ends[0][0].units == ends[1][0].units == 12 * 8
    assert ends[0][0].loss == pytest.approx(ends[1][0].loss, rel=1e-5)
    for name, parameter in ends[0][1].items():
        torch.testing.assert_close(parameter, ends[1][1][name], rtol=1e-4, atol=1e-5)
